"""The edge to the API server. The only importer of kubernetes_asyncio and aiohttp, whose exceptions never leave it."""
