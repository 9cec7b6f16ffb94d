"""`binseg serve`: models behind HTTP, for programs and for people with a browser.

    bytes -> refuse or read -> decode, prepare -> one batch with what others sent -> blend -> encode

    running.py      sockets, signals, the end: everything that is about the process
    connections.py  clients that dribble, stall or never finish
    guard.py        each request before anything else sees it: host, origin, token, headers
    app.py          the application and its parts put together
    routes.py, job_routes.py   what can be asked; queries.py the parameters
    bodies.py       reading what is sent, never more than is allowed
    pipeline.py     from bytes to an answer; images.py decodes, batching.py shares the model
    capacity.py     how much is taken at once; limits.py the numbers
    job_store.py, job_worker.py   work that outlives a request, and this process
    shelf.py        the models; examples.py images to try; metrics.py figures for Prometheus
    page/           what a browser gets

Nothing here fetches a URL or opens a path that a client names.
"""

__all__: list[str] = []
