"""Data sets to checked records."""

# The names of readers.READERS, for --help, which must not wait until they are imported.
DATASETS = (
    "agin", "seetrue", "imagereward", "unsafebench", "mjbench", "vl_rewardbench", "multimodal_rewardbench", "genai_bench",
    "mllm_judge", "pickapic", "hpdv2", "jsonl", "parquet", "prepared",
)  # fmt: skip
