"""The leaderboard: records in, one static site out.

    python -m leaderboard build --results results --output site

It reads what `benchmark.records` wrote and nothing else, and imports neither torch nor timm.
"""
