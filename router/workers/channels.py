"""The open channels to all workers, by name. Sends messages, and counts them so that workers can acknowledge them."""

from __future__ import annotations

from router.net.channel import Channel, to_frame
from router.workers.reports import SentCounts


class WorkerChannels:
    """The channels of the running workers. The worker pool adds and removes them. Other parts only send."""

    def __init__(self) -> None:
        self._channels: dict[str, Channel] = {}

    def add(self, worker: str, channel: Channel) -> None:
        """Add the channel of a worker that was started."""
        self._channels[worker] = channel

    def remove(self, worker: str) -> None:
        """Remove the channel of a worker that has exited."""
        del self._channels[worker]

    def send(self, worker: str, message: object) -> None:
        """Send a message to one worker. It is dropped if that worker has exited."""
        channel = self._channels.get(worker)
        if channel is not None:
            channel.send(message)

    def broadcast(self, message: object) -> None:
        """Send a message to all workers."""
        if self._channels:
            frame = to_frame(message)
            for channel in self._channels.values():
                channel.send_frame(frame)

    def sent_counts(self) -> SentCounts:
        """The number of messages sent to each worker so far. `WorkerReport.ack_seq` is the number that took effect."""
        return {worker: channel.sent_count for worker, channel in self._channels.items()}
