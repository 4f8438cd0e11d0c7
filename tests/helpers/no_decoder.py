"""A process that judges images where DALI cannot be imported, for the tests of
data_prep/reading/decoder_process.py.
"""

import sys

from data_prep.reading import decoder_process

if __name__ == "__main__":
    sys.modules["lt_train.data.decoder"] = None  # importing it is then an error
    decoder_process.serve()
