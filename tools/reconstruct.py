"""What an autoencoder keeps of small text: python tools/reconstruct.py runs/poster. The same as `vlad reconstruct`."""

from vlad.cli.evaluate import RECONSTRUCT

if __name__ == "__main__":
    RECONSTRUCT.run_script()
