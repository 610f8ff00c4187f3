"""The HTTP server, `rankrt serve`: one evaluator, and the dialects that existing clients speak.

A request goes through it in this order:

    connections sockets and HTTP: how many, how long, how large a header
    app         the ASGI application: routes, bodies, headers, errors
    dialects    what the wire means: TEI, Cohere, Jina, vLLM, Infinity, llama.cpp, as an Ask and back
    evaluator   an Ask becomes rows of ids in a thread of its own, and its scores an Answer
    admission   which requests are taken, and in which order: a timetable at the measured pace
    scheduler   which rows run next, and on which lane: queue, score cache, identical rows once
    workers     who runs them: processes that have the model, or this process

Only `app`, `cli`, `connections`, `metrics`, `tracing` and what they import need the extra; the rest is the runtime's
own.
"""
