# Each target makes what it needs first: .venv, the demo set, the training. See the README.

VENV := .venv
PYTHON := $(VENV)/bin/python
SYSTEM_PYTHON := $(firstword $(foreach version,3.12 3.11 3.13,$(shell python$(version) -c 'print("python$(version)")' 2>/dev/null)) python3)
SPLIT ?= image
COUNT ?= 20000
DEMO_DATA := data/demo$(if $(filter concept,$(SPLIT)),-concept)
DEMO_RUN := runs/demo$(if $(filter concept,$(SPLIT)),-concept)

.PHONY: install demo demo-v demo-set pretraining reproduce-demo app docs-pictures test test-long test-app test-faults test-oldest fuzz lint benchmark benchmark-gpu gpu-report lock clean

install: $(VENV)/installed

$(VENV)/installed: requirements.lock requirements-demo.txt
	@$(SYSTEM_PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12), (3, 13)))' || \
	  { echo "error: expected Python 3.11, 3.12 or 3.13, found $(SYSTEM_PYTHON); install one of them"; exit 2; }
	$(SYSTEM_PYTHON) -m venv $(VENV)
	$(PYTHON) -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(PYTHON) -m pip install --quiet --disable-pip-version-check --no-deps -r requirements-demo.txt
	@touch $@

demo-set: install
	$(PYTHON) -m tools.demo_set --split $(SPLIT)

demo: demo-set
	$(PYTHON) main.py --config configs/demo.py --data-path $(DEMO_DATA) --output_dir $(DEMO_RUN) \
	  --bert-model $$($(PYTHON) -m tools.demo_set --bert-folder)
	$(PYTHON) main.py --config configs/demo.py --data-path $(DEMO_DATA) --resume $(DEMO_RUN)/checkpoint_best.pth --eval
	$(PYTHON) -m tools.baselines $(DEMO_DATA) --json $(DEMO_RUN)/baselines_test.json
	$(PYTHON) tools/visualize.py $(DEMO_RUN)

demo-v: demo-set
	$(PYTHON) main_V.py --config configs/demo.py --data-path $(DEMO_DATA) --output_dir $(DEMO_RUN)-v
	$(PYTHON) main_V.py --config configs/demo.py --data-path $(DEMO_DATA) --resume $(DEMO_RUN)-v/checkpoint_v_best.pth --eval
	$(PYTHON) -m tools.baselines $(DEMO_DATA) --json $(DEMO_RUN)-v/baselines_test.json
	$(PYTHON) tools/visualize.py $(DEMO_RUN)-v

pretraining: install
	$(PYTHON) -m tools.demo_set.pretraining
	$(PYTHON) main_V.py --config configs/pretraining.py --output_dir runs/pretraining --resume auto
	$(PYTHON) -m tools.shrink_checkpoint runs/pretraining/checkpoint_pvt.pth weights/pvt_demo.pth --without-head

reproduce-demo: demo-set
	$(PYTHON) tools/reproduce.py --data-root data --settings configs/paper_demo.py --train --jobs 2 \
	  --bert-model "$$($(PYTHON) -m tools.demo_set --bert-folder)" --output docs/results/demo

app: $(VENV)/installed-app
	$(PYTHON) tools/app.py $(CHECKPOINT)

$(VENV)/installed-app: $(VENV)/installed requirements-app.txt
	$(PYTHON) -m pip install --quiet --disable-pip-version-check -r requirements.txt -r requirements-app.txt
	@touch $@

$(VENV)/installed-browser: $(VENV)/installed-app requirements-browser.txt
	$(PYTHON) -m pip install --quiet --disable-pip-version-check -r requirements-browser.txt
	@touch $@

docs-pictures: demo-v $(VENV)/installed-browser
	$(PYTHON) tools/visualize.py weights/lora_v_demo.pth data/demo/Images/twemoji/1F61A.png --output docs/pictures
	$(PYTHON) tools/visualize.py runs/demo-v --output docs/pictures
	$(PYTHON) -m tools.app_picture data/demo/Images/twemoji/1F61A.png docs/pictures/app.png

test: install lint
	$(PYTHON) -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test-long: install
	$(PYTHON) -m pytest --long -n 2 --dist loadfile --no-loadscope-reorder

test-faults: install
	$(PYTHON) -m pytest --faults tests/test_resume.py tests/test_faults.py

# The golden numbers, resuming and the commands with the oldest PyTorch that the README names.
test-oldest: $(VENV)-oldest/installed
	$(VENV)-oldest/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder tests/test_golden.py tests/test_tgca.py \
	  tests/test_samplers.py tests/test_fake_cuda.py tests/test_main.py tests/test_resume.py tests/test_tgca_runs.py \
	  tests/test_published_flags.py

$(VENV)-oldest/installed: requirements.lock requirements-oldest.txt requirements-demo.txt
	$(SYSTEM_PYTHON) -m venv $(VENV)-oldest
	grep -vE '^(torch|torchvision|triton|setuptools|cuda-[a-z]+|nvidia-[a-z0-9-]+)==' requirements.lock | \
	  $(VENV)-oldest/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-oldest.txt -r /dev/stdin
	$(VENV)-oldest/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements-demo.txt
	@touch $@

test-app: $(VENV)/installed-browser
	$(PYTHON) -m pytest --browser tests/test_app.py

fuzz: install
	for reader in annotations own-data tables images config checkpoints; do $(PYTHON) -m tests.fuzz $$reader --count $(COUNT) || exit 1; done

lint: install
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy

benchmark: install
	$(PYTHON) -m tools.benchmark network --threads 2 --size 448

benchmark-gpu: install
	$(PYTHON) -m tools.benchmark network --device cuda --size 448 --dtype float16 bfloat16 --batch-size 16 max --compile \
	  --output docs/benchmarks/gpu.json

# On a machine with a GPU; takes the calling Python and installs nothing.
gpu-report:
	python3 -m tools.benchmark.gpu_report --data $(DEMO_DATA)

# The versions of everything that the pinned packages need, on every system and Python (needs uv: pip install uv).
lock:
	uv pip compile --universal --python-version 3.11 --no-header --no-annotate requirements.txt requirements-dev.txt -o requirements.lock
	sed -i '1i # All versions that `make install` installs; `make lock` writes this file.' requirements.lock

clean:
	rm -rf $(VENV) data runs
