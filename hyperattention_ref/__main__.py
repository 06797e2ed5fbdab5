"""`python -m hyperattention_ref` is the console script `hyperattention`."""

from hyperattention_ref.cli import main

if __name__ == "__main__":
    main()
