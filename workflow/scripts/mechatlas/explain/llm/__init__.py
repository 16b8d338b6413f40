"""Asking language models: requests, answers that are kept, budgets, one careful client.

Nothing here knows what is asked or why. The way through it: `settings` reads the configuration, `check` tests it
before anything expensive starts, a `requests.Request` is asked by way of `client.run_units`, its answer is kept in
a `store.ResponseStore` and paid from a `budget.Ledger`; `forecast` says beforehand what that will be.
"""
