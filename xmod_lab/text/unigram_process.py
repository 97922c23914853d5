"""Trains a vocabulary by SentencePiece, in a process that :mod:`xmod_lab.text.unigram` starts.

It reads lines of JSON: the settings, then the passages, then null. It writes the model. It ends
with its parent, also if that is killed.
"""

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator


def _follow(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _passages() -> Iterator[str]:
    for line in sys.stdin.buffer:
        if (passage := json.loads(line)) is None:
            return
        yield passage
    os._exit(1)  # the parent stopped in the middle of the text


def main() -> None:
    """Exit with what SentencePiece refuses as the message."""
    import sentencepiece

    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2"):  # the parent obeys them
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    threading.Thread(target=_follow, args=(os.getppid(),), daemon=True).start()
    settings = json.loads(sys.stdin.buffer.readline())
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_passages(), model_writer=sys.stdout.buffer, **settings
        )
        sys.stdout.buffer.flush()
    except (RuntimeError, OSError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
