"""The command line of human studies: `python -m human_eval --help`."""

from human_eval.cli.main import main

if __name__ == "__main__":
    main()
