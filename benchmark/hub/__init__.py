"""Results on the Hugging Face Hub: runs are pushed to a dataset repository, and pulled from one.

`files` says what lies in such a repository. Nothing that is pulled is executed or unpickled: records are JSON, scores
and tables are Parquet.
"""
