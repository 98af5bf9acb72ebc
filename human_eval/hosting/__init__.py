"""Where and how the pages are served: environment variables, address, proxies, frames."""
