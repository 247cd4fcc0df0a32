"""Run the demo, the tests or the benchmarks in an environment that this script makes itself.

    python3 Testing/run.py demo [--output FOLDER]
    python3 Testing/run.py test [pytest arguments]
    python3 Testing/run.py bench [benchmark arguments]

It needs the standard library only. The first run fills `.venv` in the clone with Testing/requirements.txt, later runs
find it there. Kept readable by old Pythons, so that they can refuse in one sentence.
"""

import ctypes
import glob
import hashlib
import os
import shutil
import subprocess
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
TESTING = os.path.join(ROOT, "Testing")
ENVIRONMENT = os.path.join(ROOT, ".venv")
STAMP = os.path.join(ENVIRONMENT, "testing-run.stamp")
OLDEST, NEWEST = (3, 11), (3, 13)
LIBRARIES = {"libegl1": "libEGL.so.1", "libgl1": "libGL.so.1", "libxkbcommon0": "libxkbcommon.so.0",
             "libdbus-1-3": "libdbus-1.so.3", "libfontconfig1": "libfontconfig.so.1",
             "libglib2.0-0": "libglib-2.0.so.0"}
DRIVERS = ("/usr/lib/*/dri/*_dri.so", "/usr/lib/dri/*_dri.so", "/usr/lib64/dri/*_dri.so")


class Refusal(Exception):
    """One sentence for the user."""


def main(arguments):
    """Run one command; return its exit code."""
    commands = {"demo": run_demo, "test": run_tests, "bench": run_benchmarks}
    if not arguments or arguments[0] not in commands:
        print(__doc__)
        return 2
    try:
        interpreter = find_interpreter()
        install_system_packages(interpreter)
        python = make_environment(interpreter)
    except Refusal as refusal:
        print(refusal, file=sys.stderr)
        return 1
    return commands[arguments[0]](python, arguments[1:])


def run_tests(python, arguments):
    return call([python, "-m", "pytest"] + arguments, process_environment())


def run_demo(python, arguments):
    if not any(argument.split("=")[0] == "--output" for argument in arguments):
        arguments = ["--output", os.path.join(TESTING, "output", "demo")] + arguments
    return call([python, os.path.join(TESTING, "demo.py")] + arguments, script_environment())


def run_benchmarks(python, arguments):
    codes = [call([python, script] + arguments, script_environment())
             for script in sorted(glob.glob(os.path.join(TESTING, "benchmarks", "[!_]*.py")))]
    return max(codes, default=0)


def call(command, environment):
    return subprocess.call(command, cwd=ROOT, env=environment)


def process_environment():
    """Return the environment of the commands: no screen, no packages from elsewhere, as many threads as cores."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    environment.update({"QT_QPA_PLATFORM": "offscreen", "PYTHONNOUSERSITE": "1"})
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        environment.setdefault(name, str(available_cores()))
    return environment


def script_environment():
    """Return the environment of scripts, which pytest's configuration does not tell where the packages are."""
    folders = [os.path.join(ROOT, name) for name in ("BoneReconstruction", "TibiaCompletion", "BiplanarRecon", "Testing")]
    return dict(process_environment(), PYTHONPATH=os.pathsep.join(folders))


def available_cores():
    """Return the number of cores that this process may use, container limits included."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        with open("/sys/fs/cgroup/cpu.max") as file:
            quota, period = file.read().split()
        return max(1, min(cores, int(quota) // int(period)))
    except (OSError, ValueError):
        return cores


def find_interpreter():
    """Return the path of a supported Python: the running one if it will do, else one from PATH."""
    running = getattr(sys, "_base_executable", None) or sys.executable
    newest_first = range(NEWEST[1], OLDEST[1] - 1, -1)
    candidates = [running] + [shutil.which(f"python3.{minor}") for minor in newest_first]
    for candidate in candidates:
        if candidate and OLDEST <= version_of(candidate) <= NEWEST:
            return candidate
    raise Refusal("This needs Python 3.11, 3.12 or 3.13, and neither the running Python {}.{} nor one on PATH is."
                  .format(*sys.version_info[:2]))


def version_of(interpreter):
    """Return (major, minor) of an interpreter, (0, 0) when it does not run."""
    question = "import sys; print(sys.version_info[0], sys.version_info[1])"
    try:
        answer = subprocess.run([interpreter, "-c", question], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                                check=False)
    except OSError:
        return 0, 0
    return tuple(int(part) for part in answer.stdout.split()) if answer.returncode == 0 else (0, 0)


def install_system_packages(interpreter):
    """Install what the windows and pictures need from the system, or refuse with the line that installs it."""
    if not sys.platform.startswith("linux"):
        return
    missing = [package for package, library in LIBRARIES.items() if not loads(library)]
    if not any(glob.glob(pattern) for pattern in DRIVERS):
        missing.append("libgl1-mesa-dri")
    if subprocess.call([interpreter, "-c", "import ensurepip, venv"], stderr=subprocess.DEVNULL):
        missing.append("python{}.{}-venv".format(*version_of(interpreter)))
    if not missing:
        return
    install = ["apt-get", "install", "-y", "--no-install-recommends"] + missing
    if not shutil.which("apt-get"):
        raise Refusal("Install what Debian calls {} with your system's package manager and try again."
                      .format(" ".join(missing)))
    if os.geteuid() != 0:
        raise Refusal("System packages are missing; run: sudo apt-get update && sudo " + " ".join(install))
    environment = dict(os.environ, DEBIAN_FRONTEND="noninteractive")
    if not glob.glob("/var/lib/apt/lists/*Packages*"):
        subprocess.call(["apt-get", "update"], env=environment)
    if subprocess.call(install, env=environment):
        subprocess.call(["apt-get", "update"], env=environment)
        if subprocess.call(install, env=environment):
            raise Refusal("The system packages {} could not be installed.".format(" ".join(missing)))


def loads(library):
    """Return whether a shared library can be loaded."""
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


def make_environment(interpreter):
    """Return the Python of a complete `.venv`, made anew when the requirements or the Python version changed."""
    requirements = os.path.join(TESTING, "requirements.txt")
    with open(requirements, "rb") as file:
        digest = hashlib.sha256(file.read()).hexdigest()
    key = "{} {}.{}".format(digest, *version_of(interpreter))
    folder = "Scripts" if os.name == "nt" else "bin"
    python = os.path.join(ENVIRONMENT, folder, "python")
    if read_stamp() == key and version_of(python) != (0, 0):
        return python
    if os.path.exists(ENVIRONMENT):
        if read_stamp() is None:
            raise Refusal(f"{ENVIRONMENT} was not made by this script; move it away and try again.")
        shutil.rmtree(ENVIRONMENT)
    os.mkdir(ENVIRONMENT)
    write_stamp("incomplete")
    install = [python, "-m", "pip", "install", "--disable-pip-version-check", "--progress-bar", "off", "-r",
               requirements]
    for command in ([interpreter, "-m", "venv", ENVIRONMENT], install):
        if subprocess.call(command, env=process_environment()):
            raise Refusal(f"The environment {ENVIRONMENT} could not be made; see above why.")
    write_stamp(key)
    return python


def read_stamp():
    """Return the text of the environment's stamp, None when there is no stamp."""
    try:
        with open(STAMP) as file:
            return file.read()
    except OSError:
        return None


def write_stamp(text):
    with open(STAMP + ".part", "w") as file:
        file.write(text)
    os.replace(STAMP + ".part", STAMP)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
