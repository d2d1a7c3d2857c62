"""The edge to the API server. The only importer of kubernetes_asyncio and aiohttp; no exception of theirs leaves it."""
