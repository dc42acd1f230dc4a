"""Data sets to checked records."""

# The names of readers.READERS, for --help, which must not wait until they are imported. A user's own rows come first: a message
# shows the first names only.
DATASETS = (
    "jsonl", "parquet", "prepared", "agin", "seetrue", "imagereward", "unsafebench", "mjbench", "vl_rewardbench",
    "multimodal_rewardbench", "genai_bench", "mllm_judge", "pickapic", "hpdv2",
)  # fmt: skip
