"""A signal at the worst moment: in the hooks that Python runs at a fork, where it drops what a handler raises."""

import os


def signal_amid_the_next_fork(number: int) -> list[int]:
    """Have this process send itself the signal then, once; the list holds a number as soon as it has. The hook stays for good."""
    sent: list[int] = []

    def send() -> None:
        if not sent:
            sent.append(number)
            os.kill(os.getpid(), number)

    os.register_at_fork(after_in_parent=send)
    return sent
