"""`python -m clipstill`, which is how `torchrun` starts it in each process."""

from clipstill.main import run

if __name__ == "__main__":
    run()
