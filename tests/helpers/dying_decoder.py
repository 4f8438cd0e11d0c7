"""A process that judges images with a DALI that some of them kill, for the tests of
lt_train/data/image_files/decoder_process.py.
"""

import os
import signal

from lt_train.data import decoder
from lt_train.data.image_files import decoder_process

DEADLY, DEADLY_ONCE = b"this kills DALI", b"this kills DALI once: "


class Dying(decoder.Decoder):
    def __call__(self, contents, *parts):
        for content in contents:
            path = content.tobytes().rpartition(DEADLY_ONCE)[2].decode(errors="ignore")
            once = DEADLY_ONCE in content.tobytes() and not os.path.exists(path)
            if once:
                open(path, "x").close()
            if once or DEADLY in content.tobytes() and DEADLY_ONCE not in content.tobytes():
                os.kill(os.getpid(), signal.SIGSEGV)
        return super().__call__(contents, *parts)


if __name__ == "__main__":
    decoder.Decoder = Dying
    decoder_process.serve()
