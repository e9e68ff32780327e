"""The demo world and everything that knows it. The core never imports it."""
