"""`python -m pipeline`: the command line, as `accelerate launch -m pipeline` wants it."""

from pipeline.cli.app import main

if __name__ == "__main__":
    main()
