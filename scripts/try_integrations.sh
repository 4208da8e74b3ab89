#!/usr/bin/env bash
# Installs the extras `integrations` and `executorch` into an environment of its own, runs the tests of the exports with
# it, and prints the versions. Usage: scripts/try_integrations.sh [FOLDER OF THE ENVIRONMENT]
set -euo pipefail
cd "$(dirname "$0")/.."
environment=${1:-$(mktemp -d)/integrations}
[ -d "$environment" ] || python3 -m venv "$environment"
"$environment/bin/pip" install --quiet -e ".[integrations,executorch,dev]"
"$environment/bin/python" -m pytest -p no:cacheprovider -q -rs tests/weights/formats
"$environment/bin/pip" list 2>/dev/null | grep -iE "^(torch|torchvision|timm|onnx|onnxscript|onnxruntime|executorch|transformers|mmengine|segmentation.models.pytorch) "
date -u +%F
