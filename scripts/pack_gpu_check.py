#!/usr/bin/env python3
"""Packs scripts/gpu_check.py and its programs, for a machine with a GPU and Python's torch but without Rust or network.

usage: pack_gpu_check.py --out FOLDER [--torch FOLDER] [--reference vig_ref.py] [--profile test]

The programs are built against the torch in --torch (a folder `torch` of site-packages; default: this Python's), of the
version that the other machine has. Where that is older than the one that vigdet is written for, torch-sys is patched
in a copy: a function that the older one lacks fails when it is called. FOLDER then holds all that must travel, and
`python3 FOLDER/gpu_check.py` runs it. Needs cargo and a C++ compiler.
"""
import argparse
import importlib.util
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
# Tests of numbers, which take VIGDET_TEST_DEVICE.
TESTS = ['vig', 'pyramid', 'torchvision', 'two_stage', 'second_generation']
MOST_BYTES = 60 << 20


def output(command, **more):
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, **more).stdout


def torch_of_python():
    spec = importlib.util.find_spec('torch')
    if spec is None:
        sys.exit('pack_gpu_check: this Python has no torch: name a folder with --torch')
    return pathlib.Path(spec.submodule_search_locations[0])


def copy_sources(to):
    """The checkout's files that git knows or would add, so that nothing in it is written to."""
    names = output(['git', 'ls-files', '-z', '--cached', '--others', '--exclude-standard'], cwd=ROOT).split('\0')
    for name in filter(None, names):
        source, target = ROOT / name, to / name
        if not source.is_file() or target.is_file() and target.read_bytes() == source.read_bytes():
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)


def patched_torch_sys(sources, to, torch):
    """A copy of torch-sys whose functions that this torch lacks say so when they are called."""
    metadata = json.loads(output(['cargo', 'metadata', '--format-version', '1', '--locked'], cwd=sources))
    manifest = next(p['manifest_path'] for p in metadata['packages'] if p['name'] == 'torch-sys')
    if not to.exists():
        shutil.copytree(pathlib.Path(manifest).parent, to)
    code = to / 'libtch' / 'torch_api_generated.cpp'
    command = [os.environ.get('CXX', 'c++'), '-std=c++17', '-fsyntax-only', '-w', '-fmax-errors=0',
               f'-I{torch}/include', f'-I{torch}/include/torch/csrc/api/include', str(code)]
    found = subprocess.run(command, stderr=subprocess.PIPE, text=True)
    lines = code.read_text().split('\n')
    missing = []
    for number in sorted({int(n) for n in re.findall(r'\.cpp:(\d+):\d+: error:', found.stderr)}):
        # A function is `NAME(...) {`, `  PROTECT(`, its body, `  )`, its return, `}`.
        first = max(i for i in range(number) if lines[i].strip() == 'PROTECT(')
        last = min(i for i in range(number - 1, len(lines)) if lines[i].strip() == ')')
        name = re.search(r'(at\w+)\(', lines[first - 1]).group(1)
        missing.append(name)
        body = f'    throw std::runtime_error("this libtorch has no {name}");'
        lines[first + 1:last] = [body] + [''] * (last - first - 2)
    code.write_text('\n'.join(lines))
    check = subprocess.run(command, stderr=subprocess.PIPE, text=True)
    if check.returncode:
        sys.exit('pack_gpu_check: torch-sys cannot be built against this torch:\n' + check.stderr[:4000])
    return missing


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--out', type=pathlib.Path, required=True, help='folder that will travel; it must not exist')
    parser.add_argument('--work', type=pathlib.Path, help='folder for the build [default: OUT-build]')
    parser.add_argument('--torch', type=pathlib.Path, help="folder `torch` of site-packages [default: this Python's]")
    parser.add_argument('--reference', type=pathlib.Path, help='the plain PyTorch ViG, vig_ref.py, to be timed beside')
    parser.add_argument('--profile', default='dev', help="cargo's profile of the library [default: dev, the fast one]")
    args = parser.parse_args()
    out = args.out.resolve()
    if out.exists():
        sys.exit(f'pack_gpu_check: {out} exists: name another folder')
    torch = (args.torch or torch_of_python()).resolve()
    work = (args.work or out.with_name(out.name + '-build')).resolve()
    sources = work / 'source'
    copy_sources(sources)
    missing = patched_torch_sys(sources, work / 'torch-sys', torch)
    print(f'torch-sys against {torch}: ' + (f'without {", ".join(missing)}' if missing else 'complete'), flush=True)

    environment = os.environ | {'LIBTORCH': str(torch), 'LIBTORCH_BYPASS_VERSION_CHECK': '1',
                                'CARGO_TARGET_DIR': str(work / 'target')}
    environment.pop('LIBTORCH_USE_PYTORCH', None)
    patch = ['--config', f'patch.crates-io.torch-sys.path="{work}/torch-sys"', '--message-format', 'json']
    library = ['cargo', 'build', '--package', 'vigdet', '--example', 'gpu_check', '--profile', args.profile]
    tests = ['cargo', 'test', '--package', 'vigdet', '--no-run'] + [part for name in TESTS for part in ('--test', name)]
    out.mkdir(parents=True)
    (out / 'tests').mkdir()
    for command in (library, tests):
        messages = output(command + patch, cwd=sources, env=environment).splitlines()
        for message in map(json.loads, messages):
            target = message.get('target', {})
            if message['reason'] != 'compiler-artifact' or target['name'] not in ['gpu_check', *TESTS]:
                continue
            of_test = 'test' in target['kind']
            file = message['executable'] if of_test else message['filenames'][0]
            to = out / 'tests' / target['name'] if of_test else out / 'libgpu_check.so'
            subprocess.run(['strip', '-o', to, file], check=True)
    shutil.copyfile(ROOT / 'scripts' / 'gpu_check.py', out / 'gpu_check.py')
    shutil.copytree(ROOT / 'tests' / 'fixtures', out / 'source' / 'tests' / 'fixtures')
    if args.reference:
        shutil.copyfile(args.reference, out / 'vig_ref.py')
    commit = output(['git', 'describe', '--always', '--dirty'], cwd=ROOT).strip()
    packed = {'commit': commit, 'source': str(sources), 'profile': args.profile, 'missing': missing,
              'torch': (torch / 'version.py').read_text().split("__version__ = '")[1].split("'")[0]}
    (out / 'packed.json').write_text(json.dumps(packed, indent=2) + '\n')
    size = sum(file.stat().st_size for file in out.rglob('*') if file.is_file())
    print(f'{out}: {size / (1 << 20):.1f} MiB')
    if size > MOST_BYTES:
        sys.exit(f'pack_gpu_check: that is more than {MOST_BYTES >> 20} MiB')


if __name__ == '__main__':
    main()
