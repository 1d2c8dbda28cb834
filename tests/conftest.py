"What holds for all tests."
import signal

# A shell that starts the tests in the background (`nohup make test &`) makes them ignore Ctrl-C, and Python then raises no
# KeyboardInterrupt. Tests of an interrupt would wait for it in vain.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN: signal.signal(signal.SIGINT, signal.default_int_handler)
