"""The leaderboard: it turns records into a static site.

    python -m leaderboard build --results results --output site

It reads only files that `benchmark.records` wrote, and imports neither torch nor timm.
"""
