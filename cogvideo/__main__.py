"""`python -m cogvideo` is the command line."""

from cogvideo.cli.app import main

main()
