"""`python -m cogvideo` is the command line."""

from cogvideo.cli import main

main()
