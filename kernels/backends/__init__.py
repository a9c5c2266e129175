"""The ways to compute a `Request`. A backend is a module with three functions:

* `supports(request) -> str | None`: None, or the reason why it refuses, naming the field.
* `predict(request) -> Work`: what `run` will cost, without computing it.
* `run(request) -> Output`: the output after gates, the statistics, and the operations really done.

It never allocates anything `queries x keys` unless `request.allow_dense`, computes nothing for heads that
`request.computed` excludes, and returns zeros (before gates) and dead rows for them.
"""
