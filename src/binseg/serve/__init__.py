"""`binseg serve`: models behind HTTP, for programs and for people with a browser.

    bytes -> checked -> decoded, prepared -> one batch with other requests' inputs -> encoded

    server.py          the process: socket, connections, signals, the end
    app.py             access control around every request, and the application put together
    routes.py          what is answered at once; job_routes.py what outlives its request
    incoming.py        parameters and bodies; limits.py how much is accepted
    refusals.py        every way of saying no
    pipeline.py        from an upload to an encoded result (decoded in imageio's cage); batching.py
    service.py         the parts that the routes share, and the figures for Prometheus
    model_registry.py  the models, and images to try them with
    job_store.py       jobs on disk; job_worker.py runs them on inference's engine
    label_routes.py    the routes of `binseg label`, on the same server
    page/              what a browser gets

Nothing here fetches an address or opens a path that a client names.
"""
