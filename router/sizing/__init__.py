"""The router sizes itself: brings the self-scaler together with what is measured and with who can change a size.

Lives here: collecting of signals, the loop around `scaling.self_scaler`, workers as a size. Must not live here: what to
decide (`scaling`), and anything that knows Kubernetes (`cluster.kubernetes`).
"""
