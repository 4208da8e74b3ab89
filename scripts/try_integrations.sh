#!/usr/bin/env bash
# Installs the extras `integrations`, `frameworks` and `executorch` into an environment of its own, runs the tests of the
# exports and the pages "Use it in ..." with it, and prints the versions. Usage: scripts/try_integrations.sh [FOLDER OF THE ENVIRONMENT]
set -euo pipefail
cd "$(dirname "$0")/.."
environment=${1:-$(mktemp -d)/integrations}
[ -d "$environment" ] || python3 -m venv "$environment"
"$environment/bin/pip" install --quiet -e ".[integrations,frameworks,executorch,dev]"
"$environment/bin/python" -m pytest -p no:cacheprovider -q -rs tests/weights/formats \
  tests/scripts/test_integration_gains.py tests/docs/test_blocks.py -k "not test_blocks or use_it_in"
"$environment/bin/pip" list 2>/dev/null | grep -iE "^(torch|torchvision|timm|onnx|onnxscript|onnxruntime|executorch|transformers|mmengine|segmentation.models.pytorch|kornia|lightning|torchgeo|ultralytics) "
date -u +%F
