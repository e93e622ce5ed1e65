"""`python -m gradserve.server` is the command `gradserve`."""

from gradserve.server.cli import main

if __name__ == "__main__":
    main()
