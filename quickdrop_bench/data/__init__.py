"""Data sets, their partition over clients, and the requests that remove parts of them."""
