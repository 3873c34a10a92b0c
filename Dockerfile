# lchp for NVIDIA GPUs. Not built yet: where it was written, no Docker was at hand.
# The base brings what the driver's libraries expect; PyTorch's wheels bring CUDA itself, so no toolkit is needed.
FROM nvidia/cuda:13.0.1-runtime-ubuntu24.04

RUN apt-get update \
    && apt-get install -y --no-install-recommends python3 python3-venv \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /lchp
COPY pyproject.toml constraints.txt MANIFEST.in README.md CHANGELOG.md LICENSE LICENSES.md ./
COPY lchp lchp
COPY sweeps sweeps
COPY analysis analysis

RUN python3 -m venv .venv \
    && .venv/bin/pip install --no-cache-dir uv \
    && .venv/bin/uv pip install --no-cache -p .venv -c constraints.txt -e ".[export,timm]"

# results, caches and weights lie in folders that outlive a container: mount them
ENV PATH=/lchp/.venv/bin:$PATH XDG_CACHE_HOME=/cache TORCH_HOME=/cache/torch
VOLUME ["/lchp/results", "/lchp/runs", "/cache"]

CMD ["lchp", "--help"]
