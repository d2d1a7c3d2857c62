# devwatch: run it, test it, check it. Needs make, bash and Python 3.11 or newer.

VENV ?= .venv
PYTHONS := python3.14 python3.13 python3.12 python3.11 python3
PREFIX ?= /usr/local
UNITS ?= /etc/systemd/system
# Where a release goes. Every other file that names the registry is held to this by tests/project/test_publishing.py, and those that name
# the repository to [project.urls] of pyproject.toml.
REGISTRY := ghcr.io/devwatch
LOCK_VENV := $(VENV)-lock
RELEASE_VENV := $(VENV)-release
DOCS_VENV := $(VENV)-docs

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.DEFAULT_GOAL := help
export PIP_NO_INPUT := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# A user's own `user = true` contradicts a virtual environment.
export PIP_USER := 0
export PIP_ROOT_USER_ACTION := ignore

# A stamp names what it was made from: its lock files, the metadata of the package (all above the settings of the tools), and the
# place of the checkout, which an editable install records. With an unknown stamp the environment is made again.
digest = $(shell { pwd; sed '/^\[tool\.ruff]/,$$d' pyproject.toml; cat $(1); } | sha256sum | cut -c1-16)
RUN_LOCKS := .requirements/run.txt .requirements/build.txt
RUN_STAMP := $(VENV)/.devwatch-run-$(call digest,$(RUN_LOCKS))
DEV_STAMP := $(VENV)/.devwatch-dev-$(call digest,.requirements/dev.txt)
LOCK_STAMP := $(LOCK_VENV)/.devwatch-lock-$(call digest,.requirements/lock.txt)
RELEASE_STAMP := $(RELEASE_VENV)/.devwatch-release-$(call digest,.requirements/release.txt)
DOCS_STAMP := $(DOCS_VENV)/.devwatch-docs-$(call digest,.requirements/docs.txt)
# What `make test` installed holds all that `make run` needs.
RUN_READY := $(firstword $(wildcard $(DEV_STAMP)) $(RUN_STAMP))

# $(call environment,FOLDER,LOCK FILES): a virtual environment with exactly what the lock files say.
# A folder that this file did not make is filled, never emptied. Debian's Python has no ensurepip without python3-venv: then
# another pip fills the environment from outside (--python, pip 22.3), or root installs the package.
define environment
say() { echo "devwatch: $$*" >&2; }
root_apt() { [ "$$(id -u)" = 0 ] && command -v apt-get > /dev/null && { say "installing $$1"; \
    apt-get update -qq >&2 && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "$$1" >&2; }; }
for name in $(PYTHONS); do
    python=$$("$$name" -c 'import sys; sys.version_info < (3, 11) or print(sys.executable)' 2> /dev/null) || true
    [ -z "$$python" ] || break
done
[ -n "$$python" ] || { say "Python 3.11 or newer is needed; none of $(PYTHONS) is (Debian: apt-get install python3 python3-venv)"; exit 1; }
version=$$("$$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
ensurepip() { "$$python" -c 'import ensurepip, venv' 2> /dev/null; }
outer_pip() { "$$python" -m pip --python "$$python" --version > /dev/null 2>&1; }
options=
if compgen -G "$(1)/.devwatch-*" > /dev/null; then options=--clear
elif [ -e "$(1)" ] && [ ! -e "$(1)/pyvenv.cfg" ] && [ -n "$$(ls -A "$(1)")" ]; then
    say "$(1) exists and is not a virtual environment; move it away or name another with VENV="; exit 1
fi
ensurepip || outer_pip || root_apt "python$$version-venv" || true
if ensurepip; then pip=("$(1)/bin/python" -m pip)
elif outer_pip; then options="$$options --without-pip"; pip=("$$python" -m pip --python "$(1)/bin/python")
else say "$$python can make no virtual environment: neither ensurepip nor pip is there (Debian: apt-get install python$$version-venv)"; exit 1
fi
say "making $(1) with $$python"
"$$python" -m venv $$options "$(1)"
touch "$(1)/.devwatch-begun"
"$${pip[@]}" install --quiet --no-deps --only-binary :all: --require-hashes $(foreach lock,$(2),-r $(lock))
endef

# The package itself is built by the locked backend: only what a lock file names is downloaded.
define package
"$${pip[@]}" install --quiet --no-deps --no-build-isolation --editable .
libudev() { "$(VENV)/bin/python" -c 'import pyudev; pyudev.Context()' 2> /dev/null; }
libudev || root_apt libudev1 || true
libudev || { say "libudev.so.1 is missing (Debian: apt-get install libudev1)"; exit 1; }
endef

.PHONY: help run test check lint fmt bench usb fuzz soak stress install uninstall image ready build release push publish announce proto schema reference docs lock clean

help: ## Show this list.
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-9s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))
	cat <<- 'END'

	    make run ARGS="--config my.yaml --once"   options of "devwatch run"; they replace --dry-run, so this writes to the Node
	    make test ARGS="-k grace -x"              options of pytest
	    make test COVERAGE=1                      with branch coverage, and a failure below the threshold
	    make test WORKERS=0                       in one process, as --pdb needs it (as many as CPUs, at least 2)
	    VENV=DIR                                  the virtual environment ($(VENV))
	END

# Without ARGS nothing is written anywhere. The example stays the configuration until --config or DEVWATCH_CONFIG names another.
run: $(RUN_READY) ## Run the daemon: a dry run with systemd/config.yaml, or what ARGS says.
	@export DEVWATCH_CONFIG="$${DEVWATCH_CONFIG:-systemd/config.yaml}"
	exec "$(VENV)/bin/devwatch" run $(or $(ARGS),--dry-run)

# Also where there is one CPU: the tests that need the machine to themselves are one worker's, begin first, and mostly wait.
WORKERS ?= $(shell n=$$(nproc); echo $$((n > 2 ? n : 2)))

test: $(DEV_STAMP) ## Run the tests. Those that need root or a control plane are reported as skipped.
	@exec "$(VENV)/bin/python" -m pytest -n $(WORKERS) $(if $(COVERAGE),--cov --cov-report=term-missing:skip-covered) $(ARGS)

check: lint ## All that a change must pass: format, lint, types, floors, tests with coverage.
	@$(MAKE) --no-print-directory test COVERAGE=1

# These need root and a machine that may be changed; each names in one line what is missing.
bench: $(DEV_STAMP) ## Measure everything on real parts, beside the polling script, and write the figures into README.md and docs/ (ARGS=--quick: only measure).
	@exec "$(VENV)/bin/python" -m bench $(or $(ARGS),--write)

usb: $(DEV_STAMP) ## Boot a virtual machine, install the unit there, plug and pull real USB sticks.
	@exec "$(VENV)/bin/python" -m pytest tests/usb $(ARGS)

TARGET ?= configuration
fuzz: $(DEV_STAMP) ## Throw 100,000 inputs at TARGET (configuration, annotation, record, uevent, answer, kubelet, plugin, claims); by coverage where atheris is installed.
	@cd tests && exec "$(abspath $(VENV))/bin/python" -m fuzz $(TARGET) $(or $(ARGS),-runs=100000)

soak: $(DEV_STAMP) ## Live an hour on a real kubelet at 100 events a second and show that nothing grows (ARGS="--seconds 300").
	@cd tests && exec "$(abspath $(VENV))/bin/python" -m soak $(ARGS)

stress: $(DEV_STAMP) ## Kill kubelets, plug 200 times, take API server, disk and clock away, go to 0.1.0 and back (DEVWATCH_STRESS=0.1 for less).
	@export DEVWATCH_STRESS="$${DEVWATCH_STRESS:-1}"
	exec "$(VENV)/bin/python" -m pytest tests/system/test_stress_kubelet.py tests/system/test_upgrade.py $(ARGS)

lint: $(DEV_STAMP) ## Check format, lint and types.
	@"$(VENV)/bin/ruff" format --check .
	"$(VENV)/bin/ruff" check .
	"$(VENV)/bin/mypy"

fmt: $(DEV_STAMP) ## Format the code and repair what ruff can.
	@"$(VENV)/bin/ruff" check --fix-only .
	"$(VENV)/bin/ruff" format .

# Development is resolved first, and the smaller sets take its versions: what is tested is what runs.
# Everything goes below DESTDIR, and runs from PREFIX. What the user may have changed in /etc is never replaced.
install: $(RUN_READY) ## Install the program, its unit and an example configuration (DESTDIR=, PREFIX=/usr/local).
	@python=$$("$(VENV)/bin/python" -c 'import sys; print(sys._base_executable)')
	library="$(PREFIX)/lib/devwatch"
	rm -rf "$(DESTDIR)$$library"
	"$$python" -m pip install --quiet --no-deps --only-binary :all: --require-hashes --target "$(DESTDIR)$$library" -r .requirements/run.txt
	rm -rf "$(DESTDIR)$$library/bin" # programs of the dependencies, which devwatch does not need, and pip warns of
	"$(VENV)/bin/python" -m pip --python "$(VENV)/bin/python" install --quiet --no-deps --no-build-isolation --target "$(DESTDIR)$$library" .
	install -d "$(DESTDIR)$(PREFIX)/bin" "$(DESTDIR)$(UNITS)" "$(DESTDIR)/etc/devwatch"
	printf '#!%s\nimport sys\nsys.path.insert(0, "%s")\nfrom devwatch.cli import main\nsys.exit(main())\n' "$$python" "$$library" \
	    > "$(DESTDIR)$(PREFIX)/bin/devwatch"
	chmod 755 "$(DESTDIR)$(PREFIX)/bin/devwatch"
	sed 's|@BINDIR@|$(PREFIX)/bin|' systemd/devwatch.service > "$(DESTDIR)$(UNITS)/devwatch.service"
	for name in config.yaml devwatch.env; do
	    [ -e "$(DESTDIR)/etc/devwatch/$$name" ] || install -m 644 "systemd/$$name" "$(DESTDIR)/etc/devwatch/$$name"
	done
	echo "installed; next: edit /etc/devwatch, then systemctl daemon-reload && systemctl enable --now devwatch"

IMAGE ?= $(REGISTRY)/devwatch:$(version)
image: ## Build the container image with docker, podman or buildah (IMAGE=NAME:TAG).
	@for builder in "docker build" "podman build" "buildah build"; do
	    command -v "$${builder%% *}" > /dev/null && exec $$builder -f deploy/image/Containerfile -t "$(IMAGE)" .
	done
	echo "devwatch: no docker, podman or buildah here" >&2
	exit 1

uninstall: ## Remove what install made, but not /etc/devwatch.
	@rm -rf "$(DESTDIR)$(PREFIX)/lib/devwatch" "$(DESTDIR)$(PREFIX)/bin/devwatch" "$(DESTDIR)$(UNITS)/devwatch.service"
	echo "removed; /etc/devwatch stays. What is advertised stays too, unless devwatch purge removed it before"

# Every file of a release has the version of the package and the date of the commit: no clock of a machine is in it.
version := $(shell sed -n 's/^__version__ = "\(.*\)"$$/\1/p' src/devwatch/__init__.py)
dated = export SOURCE_DATE_EPOCH=$$(git log -1 --format=%ct)

ready: ## Say whether this commit can be released: all committed, one version in package, CHANGELOG and tag.
	@refuse() { echo "devwatch: no release: $$*" >&2; exit 1; }
	changes=$$(git status --porcelain)
	[ -z "$$changes" ] || refuse "not committed: $$changes"
	entry=$$(grep -m 1 '^## ' CHANGELOG.md || true)
	grep -qxE '## \[$(subst .,\.,$(version))\] - [0-9]{4}-[0-9]{2}-[0-9]{2}' <<< "$$entry" || \
	    refuse "CHANGELOG.md begins with '$$entry', not with '## [$(version)] - YYYY-MM-DD'"
	for tag in $$(git tag --points-at HEAD --list 'v*'); do
	    [ "$$tag" = "v$(version)" ] || refuse "this commit is tagged $$tag, and the package is $(version)"
	done
	tagged=$$(git rev-parse --quiet --verify "refs/tags/v$(version)^{commit}" || true)
	[ -z "$$tagged" ] || [ "$$tagged" = "$$(git rev-parse HEAD)" ] || refuse "v$(version) is another commit, $$tagged"

# Built twice from the commit, in different places and with different permissions. A file that depends on either stops the build.
build: $(DEV_STAMP) ## Build wheel, sdist and chart of the last commit into dist/, reproducibly.
	@$(dated)
	work=$$(mktemp -d)
	trap 'rm -rf "$$work"' EXIT
	build() {
	    mkdir -p "$$work/$$1"
	    git archive HEAD | tar --no-same-permissions -x -C "$$work/$$1"
	    (cd "$$work/$$1" && "$(abspath $(VENV))/bin/python" -m hatchling build -d "$$work/dist-$$1")
	    (cd "$$work/$$1/tests" && "$(abspath $(VENV))/bin/python" -m support.release "$$work/dist-$$1")
	}
	build first > /dev/null
	(umask 077 && build second > /dev/null)
	diff -r "$$work/dist-first" "$$work/dist-second" >&2 || { echo "devwatch: two builds differ" >&2; exit 1; }
	rm -rf dist
	cp -r "$$work/dist-first" dist
	ls dist/*

# The wheel is tried in an environment without the checkout: with the locked dependencies, by the tests of the sdist.
release: ready $(RELEASE_STAMP) ## Check, build, try and describe a release in dist/. Publishes nothing.
	@$(MAKE) --no-print-directory check ARGS=
	$(MAKE) --no-print-directory build
	$(dated)
	work=$$(mktemp -d)
	trap 'rm -rf "$$work"' EXIT
	add() { "$(VENV)/bin/python" -m pip --python "$$work/bin/python" install --quiet --no-deps --only-binary :all: "$$@"; }
	"$(VENV)/bin/python" -m venv --without-pip "$$work"
	add --require-hashes -r .requirements/run.txt
	add --no-index dist/devwatch-$(version)-py3-none-any.whl
	[ "$$("$$work/bin/devwatch" --version)" = "devwatch $(version)" ]
	add --require-hashes -r .requirements/dev.txt
	tar -xzf dist/devwatch-$(version).tar.gz -C "$$work"
	(cd "$$work/devwatch-$(version)" && CI= DEVWATCH_CI= "$$work/bin/python" -m pytest -n $(WORKERS) -q --no-header -rN)
	sed 's/^dynamic = \["version"\]$$/version = "$(version)"/' pyproject.toml > "$$work/pyproject.toml"
	"$(RELEASE_VENV)/bin/python" -W ignore::UserWarning -m cyclonedx_py requirements --output-reproducible \
	    --pyproject "$$work/pyproject.toml" -o dist/devwatch-$(version).cdx.json .requirements/run.txt
	(cd dist && sha256sum devwatch-* > SHA256SUMS && cat SHA256SUMS)
	cat <<- 'END'
	    devwatch $(version) is ready in dist/ and published nowhere. One tag publishes all of it:
	        git tag -a v$(version) -m "devwatch $(version)" && git push origin v$(version)
	    It starts .github/workflows/release.yml, which makes these files again and then runs:
	        make push       image and chart to $(REGISTRY), signed, with the bill of materials
	        make publish    wheel and sdist to the package index
	        make announce   the release page, with the notes of dist/NOTES.md
	    Once for a repository: .github/CONTRIBUTING.md, "A release".
	END

# A signature is of a digest: a tag can be moved. What is logged in here is forgotten with the folder. buildah, helm and cosign all read
# the credentials in the form of docker's config.json.
PLATFORMS := linux/amd64,linux/arm64
push: ## Build the image for PLATFORMS; push image and chart, sign both, attest the bill of materials (REGISTRY_USER, REGISTRY_TOKEN).
	@(cd dist && sha256sum --check --quiet SHA256SUMS)
	work=$$(mktemp -d)
	trap 'rm -rf "$$work"' EXIT
	export DOCKER_CONFIG="$$work" REGISTRY_AUTH_FILE="$$work/config.json"
	buildah login --username "$$REGISTRY_USER" --password-stdin "$(firstword $(subst /, ,$(REGISTRY)))" <<< "$$REGISTRY_TOKEN"
	unset REGISTRY_TOKEN
	$(dated)
	buildah build --platform "$(PLATFORMS)" --timestamp "$$SOURCE_DATE_EPOCH" --manifest "$(IMAGE)" -f deploy/image/Containerfile .
	buildah manifest push --all --digestfile "$$work/digest" "$(IMAGE)" "docker://$(IMAGE)"
	helm push --registry-config "$$work/config.json" dist/devwatch-chart-$(version).tgz "oci://$(REGISTRY)/charts" 2>&1 | tee "$$work/pushed"
	image="$(REGISTRY)/devwatch@$$(cat "$$work/digest")"
	chart="$(REGISTRY)/charts/devwatch@$$(sed -n 's/^Digest: //p' "$$work/pushed")"
	for pushed in "$$image" "$$chart"; do
	    [[ $$pushed =~ @sha256:[0-9a-f]{64}$$ ]] || { echo "devwatch: no digest of $$pushed, so nothing is signed" >&2; exit 1; }
	done
	cosign sign --yes "$$image" "$$chart"
	cosign attest --yes --type cyclonedx --predicate dist/devwatch-$(version).cdx.json "$$image"

publish: $(LOCK_STAMP) ## Upload what make release made, as a trusted publisher or with UV_PUBLISH_TOKEN.
	@(cd dist && sha256sum --check --quiet SHA256SUMS)
	exec "$(LOCK_VENV)/bin/uv" publish dist/*.whl dist/*.tar.gz

announce: ## Make the release page of the tag, with the notes and files of dist/ (GH_TOKEN).
	@(cd dist && sha256sum --check --quiet SHA256SUMS)
	exec gh release create "v$(version)" --verify-tag --title "devwatch $(version)" --notes-file dist/NOTES.md dist/devwatch-* dist/SHA256SUMS

proto: $(DEV_STAMP) ## Generate the messages of the kubelet's sockets again.
	@"$(VENV)/bin/python" -m grpc_tools.protoc -I src --python_out=src --pyi_out=src src/devwatch/kubelet/kubelet.proto

schema: $(DEV_STAMP) ## Generate the configuration's part of the schema of the chart's values again.
	@cd tests && exec "$(abspath $(VENV))/bin/python" -m support.chartschema

reference: $(DEV_STAMP) ## Generate the reference pages of docs/ again: keys, commands, metrics, log events.
	@cd tests && exec "$(abspath $(VENV))/bin/python" -m support.reference

# Nothing is fetched: the locked environment holds the theme with its scripts.
docs: $(DOCS_STAMP) ## Build the site of docs/ in build/site, and follow all of its links.
	@NO_MKDOCS_2_WARNING=1 "$(DOCS_VENV)/bin/python" -m mkdocs build --clean --config-file .mkdocs.yml
	cd tests && exec "$(abspath $(DOCS_VENV))/bin/python" -m support.builtsite "$(CURDIR)/build/site"

lock: $(LOCK_STAMP) ## Resolve the dependencies again and write .requirements/.
	@resolve() { "$(LOCK_VENV)/bin/uv" pip compile --quiet --no-config --universal --python-version 3.11 --upgrade \
	    --generate-hashes --no-header --no-annotate "$$@" > /dev/null; }
	resolve pyproject.toml --all-extras --group dev -o .requirements/dev.txt
	resolve pyproject.toml --all-extras -c .requirements/dev.txt -o .requirements/run.txt
	resolve --group build -c .requirements/dev.txt -o .requirements/build.txt
	resolve --group docs -o .requirements/docs.txt
	resolve --group release -o .requirements/release.txt
	resolve --group lock -o .requirements/lock.txt

clean: ## Remove what make made.
	@for folder in "$(VENV)" "$(LOCK_VENV)" "$(RELEASE_VENV)" "$(DOCS_VENV)"; do
	    if compgen -G "$$folder/.devwatch-*" > /dev/null; then rm -rf "$$folder"; fi
	done
	rm -rf build dist .coverage .coverage.* .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find bench src tests -type d -name __pycache__ -prune -exec rm -rf {} +

$(RUN_STAMP):
	@$(call environment,$(VENV),$(RUN_LOCKS))
	$(package)
	touch $@

$(DEV_STAMP):
	@$(call environment,$(VENV),.requirements/dev.txt)
	$(package)
	touch $@

$(LOCK_STAMP):
	@$(call environment,$(LOCK_VENV),.requirements/lock.txt)
	touch $@

$(RELEASE_STAMP):
	@$(call environment,$(RELEASE_VENV),.requirements/release.txt)
	touch $@

$(DOCS_STAMP):
	@$(call environment,$(DOCS_VENV),.requirements/docs.txt)
	touch $@
