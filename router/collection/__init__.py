"""Data collection: stores requests and responses of models, and what their entry scripts log, in Azure ML's format.

    exchange -> CollectionOutbox --packets--> Assembly -> EventLog -> LineBuffer -> Writer -> Store (folder, Azure)
    (a worker, `outbox`)        (one socket)  (the process of `collector`)

A worker only copies what passes it into packets (`frames`), within a bounded buffer. It never waits: what the collector
does not take in time is dropped and counted. The supervisor owns both ends of the socket (`process`), so that neither
a new worker nor a new collector needs a new one, and a collector that ends leaves its successor what it has not read.
"""
