"""`python -m binseg` is the same as `binseg`."""

from binseg.cli import main

if __name__ == "__main__":
    main()
