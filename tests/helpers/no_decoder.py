"""A process that judges images where DALI cannot be imported, for the tests of
lt_train/data/image_files/decoder_process.py.
"""

import sys

from lt_train.data.image_files import decoder_process

if __name__ == "__main__":
    sys.modules["lt_train.data.decoder"] = None  # importing it is then an error
    decoder_process.serve()
