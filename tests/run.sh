#!/usr/bin/env bash
# Sets up and runs every check, on a machine that has nothing but Python: bash tests/run.sh [PYTEST ARGUMENTS]
#
# Packages go to .venv in the repository's root and are installed again only when a requirements file changes.
# PYTHON chooses the interpreter that makes it (default python3), TDA_DEMO_CHROMIUM the browser (default: one that is
# found, else installed).
set -euo pipefail
exec </dev/null # nothing below may wait for an answer
cd "$(dirname "${BASH_SOURCE[0]}")/.."

python=${PYTHON:-python3}
venv=$PWD/.venv
chromium=${TDA_DEMO_CHROMIUM:-}

say() { printf '\n== %s\n' "$*"; }
give_up() {
    printf 'tests/run.sh: %s\n' "$*" >&2
    exit 1
}
can_apt() { [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; }
apt_install() { apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends "$@"; }

# True where the interpreter $1 runs, is new enough for the requirements and has pip.
usable() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' && "$1" -m pip --version; } >/dev/null 2>&1

make_environment() {
    local remedy="install Python 3.11 or newer, or name one: PYTHON=/path/to/python3"
    command -v "$python" >/dev/null || give_up "$python was not found; $remedy"
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
        give_up "$("$python" --version) is too old; $remedy"
    # Debian packs the part of Python that makes virtual environments separately.
    if ! "$python" -c 'import ensurepip' 2>/dev/null; then
        { can_apt && apt_install python3-venv; } || true
        "$python" -c 'import ensurepip' 2>/dev/null ||
            give_up "$python cannot make virtual environments; install its venv module (apt install python3-venv)"
    fi
    "$python" -m venv --clear "$venv"
}

# An environment that works is never thrown away: it may be the user's own.
install_packages() {
    local wanted stamp=$venv/requirements.cksum
    wanted=$(cat requirements.txt tests/requirements.txt | cksum)
    if ! usable "$venv/bin/python"; then
        make_environment
    elif [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]; then
        say "Packages: those in .venv are up to date"
        return
    fi
    say "Packages: installing into .venv (the first time takes some minutes)"
    rm -f "$stamp"
    "$venv/bin/python" -m pip install --no-input --disable-pip-version-check --progress-bar off \
        -r requirements.txt -r tests/requirements.txt
    echo "$wanted" >"$stamp" # last, so that an interrupted installation is taken up again
}

# Sets `chromium` to the first browser on PATH that starts; on Ubuntu `chromium-browser` may only ask for snap.
find_chromium() {
    local name
    for name in chromium chromium-browser google-chrome google-chrome-stable; do
        if command -v "$name" >/dev/null && "$name" --version >/dev/null 2>&1; then
            chromium=$(command -v "$name")
            return
        fi
    done
    return 1
}

playwright_chromium() {
    local with_deps=()
    if can_apt; then with_deps=(--with-deps); fi
    "$venv/bin/python" -m playwright install ${with_deps[@]+"${with_deps[@]}"} chromium ||
        give_up "no browser; install Chromium or Chrome, or name one: TDA_DEMO_CHROMIUM=/path/to/chromium"
    chromium=$("$venv/bin/python" - <<'PY'
from playwright.sync_api import sync_playwright
with sync_playwright() as playwright:
    print(playwright.chromium.executable_path)
PY
    )
}

ensure_chromium() {
    if [ -n "$chromium" ] || find_chromium; then return; fi
    if can_apt; then
        say "Browser: none found, installing Debian's chromium"
        if apt_install chromium && find_chromium; then return; fi
    fi
    say "Browser: none found, installing Playwright's Chromium"
    playwright_chromium
}

install_packages
ensure_chromium
export TDA_DEMO_CHROMIUM=$chromium
export GRADIO_ANALYTICS_ENABLED=False
say "Browser: $TDA_DEMO_CHROMIUM"

say "Lint: ruff check"
"$venv/bin/ruff" check .
say "Format: ruff format --check"
"$venv/bin/ruff" format --check .
say "Types: pyright"
"$venv/bin/pyright" --pythonpath "$venv/bin/python"
say "Tests: pytest"
exec "$venv/bin/python" -m pytest --numprocesses 2 --dist worksteal "$@"
