"""Benchmark of the one-class SVM against reference solvers: cost, accuracy, size. Prints tables in some minutes.

    python benchmarks/ocsvm.py [--run OUT] [--brain SCRATCH_FOLDER]

Times are process CPU time of one thread, medians of interleaved rounds (A, B, A, B, ...) in one run, after a warm-up.
`--run` adds the latents of a run of voxout, raw and whitened, to the random ones, as the cost depends on the number of
support vectors. `--brain` fits a whole brain at 1 mm from latents that it writes to the given folder (4.3 GB), with all
cores, and reports wall-clock time.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import platform
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from sklearn.svm import OneClassSVM, _libsvm
from voxout.data_manifests.cohort.output_paths import OutputFolder
from voxout.models.features.source import SCORER_SPECS
from voxout.models.features.whitening import Whitening
from voxout.models.ocsvm.dual import solve_dual
from voxout.models.ocsvm.guidance_loss import guidance_loss
from voxout.models.ocsvm.voxelwise import DetectorField, fit_detectors

DIMENSION = 16
NU = 0.03
_FEW = 4
_VOXELS = 256
_EXACT = {"eps": 1e-9, "max_iters": 100000}


def random_latents(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(*shape, DIMENSION))


def realistic_latents(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Random latents with unequal variances, rotated, with heavy tails, similar to those of an encoder."""
    rng = np.random.default_rng(seed)
    rotation = np.linalg.qr(rng.normal(size=(DIMENSION, DIMENSION)))[0]
    tails = 1 + 0.5 * rng.exponential(size=(*shape, 1))
    return (rng.normal(size=(*shape, DIMENSION)) * tails * 2 * np.exp(-np.arange(DIMENSION) / 4)) @ rotation


def medians(rounds: int, *contestants: tuple[Callable[[], object], int]) -> list[float]:
    """Median microseconds per item of interleaved runs; each contestant is (function, number of items)."""
    times: list[list[float]] = [[] for _ in contestants]
    for function, _ in contestants:
        function()
    for _ in range(rounds):
        for durations, (function, items) in zip(times, contestants, strict=True):
            begin = time.process_time()
            function()
            durations.append((time.process_time() - begin) / items * 1e6)
    return [float(np.median(durations)) for durations in times]


def flatness(latents: np.ndarray, gamma: np.ndarray) -> np.ndarray:
    """s of each voxel: mean of the off-diagonal elements of 1 - K."""
    m = latents.shape[1]
    return np.array(
        [
            -np.expm1(-g * ((z[:, None] - z[None]) ** 2).sum(-1)).sum() / (m * (m - 1))
            for z, g in zip(latents.astype(np.float64), gamma, strict=True)
        ]
    )


def table_of_gaps() -> None:
    print("\nKKT gap relative to s (goal 1e-9), worst of 30 voxels, m = 75")
    rng = np.random.default_rng(0)
    normal = random_latents((30, 75))
    regimes: dict[str, tuple[np.ndarray, float, float | str]] = {
        "gamma 1e-2": (normal, NU, 1e-2),
        "scale": (normal, NU, "scale"),
        "nu*m an integer": (normal, 6 / 75, 1e-2),
        "nu*m below 1": (normal, 0.01, 1e-2),
        "nu 1": (normal, 1.0, 1e-2),
        "no free vector": (normal * (1 + 50 * (np.arange(75) < 2))[:, None], 2 / 75, 1e-7),
        "latents of scale 1e-4": (normal * 1e-4, NU, 1e-2),
        "gamma 1e-6": (normal, NU, 1e-6),
        "duplicates": (np.repeat(normal[:, :25], 3, axis=1), NU, "scale"),
        "all equal": (np.ones_like(normal), NU, "scale"),
        "one far outlier": (normal * np.where(np.arange(75) == 0, 1e4, 1e-3)[:, None], NU, 1e-2),
        "m = 2": (normal[:, :2], 0.5, 1e-2),
        "float16": (normal.astype(np.float16), NU, "scale"),
        "300 subjects": (rng.normal(size=(30, 300, DIMENSION)), 0.1, "scale"),
    }
    for name, (latents, nu, gamma) in regimes.items():
        solution = solve_dual(latents, nu=nu, gamma=gamma)
        s = flatness(latents, solution.gamma)
        print(f"  {name:24s} {np.max(solution.kkt_gap / np.where(s > 0, s, 1)):8.1e}")


def table_of_losses() -> None:
    print(f"\nLoss forward and backward, us per voxel ({_VOXELS} voxels, m = q, d = 16, nu 0.03)")
    print(f"  {'':24s} {'voxout':>8s} {'cvxpylayers':>12s} {'ratio':>7s}   cvxpylayers at default tolerance: us, error")
    for m in (38, 64):
        for gamma in (1e-2, "scale"):
            sv = torch.from_numpy(random_latents((_VOXELS, m))).requires_grad_()
            rest = torch.from_numpy(random_latents((_VOXELS, m), seed=1)).requires_grad_()

            def voxout(sv=sv, rest=rest, gamma=gamma):
                sv.grad = rest.grad = None
                guidance_loss(sv, rest, nu=NU, gamma=gamma).sum().backward()

            reference = conic_loss(m)

            def conic(options, sv=sv, rest=rest, gamma=gamma, reference=reference):
                sv.grad = rest.grad = None
                for b in range(_FEW):
                    reference(sv[b], rest[b], gamma, options).backward()

            us, us_exact, us_default = medians(
                5, (voxout, _VOXELS), (lambda c=conic: c(_EXACT), _FEW), (lambda c=conic: c({}), _FEW)
            )
            voxout()
            gradient = sv.grad[:_FEW].clone()
            errors = []
            for options in (_EXACT, {}):
                conic(options)
                errors.append(float((sv.grad[:_FEW] - gradient).norm() / gradient.norm()))
            print(
                f"  m = {m}, gamma {gamma!s:12s} {us:8.1f} {us_exact:12.0f} {us_exact / us:6.0f}x"
                f"   {us_default:.0f}, {errors[1]:.1%} (at eps 1e-9: {errors[0]:.1e})"
            )


def conic_loss(m: int):
    """Loss at one voxel as published, with a general conic solver through cvxpylayers."""
    import cvxpy as cp
    from cvxpylayers.torch import CvxpyLayer

    root, total = cp.Parameter((m, m)), NU * m
    a = cp.Variable(m)
    problem = cp.Problem(cp.Minimize(0.5 * cp.sum_squares(root @ a)), [cp.sum(a) == total, a >= 0, a <= 1])
    layer = CvxpyLayer(problem, parameters=[root], variables=[a])

    def loss(sv, rest, gamma, options):
        width = 1 / (DIMENSION * sv.var(correction=0)) if gamma == "scale" else gamma
        kernel = torch.exp(-width * torch.cdist(sv, sv, compute_mode="donot_use_mm_for_euclid_dist") ** 2)
        lower = torch.linalg.cholesky(kernel + 1e-12 * torch.eye(m, dtype=sv.dtype))
        (a,) = layer(lower.mT, solver_args={"solve_method": "SCS"} | options)
        free = (a > 1e-5) & (a < 1 - 1e-5)
        offset = (kernel @ a)[free].mean()
        cross = torch.exp(-width * torch.cdist(sv, rest, compute_mode="donot_use_mm_for_euclid_dist") ** 2)
        return torch.relu(offset - a @ cross).sum() / NU

    return loss


def table_of_gradients() -> None:
    print(
        "\nGradient against central differences, if the active set does not change (goal 1e-5), worst of 20 directions"
    )
    for m in (38, 64):
        for gamma in (1e-2, "scale"):
            sv, rest = (torch.from_numpy(random_latents((8, m), seed=s)).requires_grad_() for s in (0, 1))
            guidance_loss(sv, rest, nu=NU, gamma=gamma).sum().backward()
            before = solve_dual(sv, nu=NU, gamma=gamma).free
            worst, kept = 0.0, 0
            generator = torch.Generator().manual_seed(0)
            for _ in range(20):
                along = [torch.randn(x.shape, generator=generator, dtype=x.dtype) for x in (sv, rest)]
                step = 1e-5
                with torch.no_grad():
                    moved = [(sv + h * along[0], rest + h * along[1]) for h in (step, -step)]
                    same = [(solve_dual(x, nu=NU, gamma=gamma).free == before).all(dim=1) for x, _ in moved]
                    up, down = (guidance_loss(*pair, nu=NU, gamma=gamma) for pair in moved)
                numeric = (up - down) / (2 * step)
                exact = (sv.grad * along[0]).sum(dim=(1, 2)) + (rest.grad * along[1]).sum(dim=(1, 2))
                use = same[0] & same[1]
                kept += int(use.sum())
                size = sv.grad.flatten(1).norm(dim=1) + rest.grad.flatten(1).norm(dim=1)
                worst = max(worst, float(((numeric - exact).abs() / size)[use].max()))
            print(f"  m = {m}, gamma {gamma!s:8s} {worst:8.1e}   ({kept} of 160 used)")


def compare_fits(name: str, latents: np.ndarray, nu: float, gamma: float | str) -> None:
    """Compare fits on `latents` (S, P, d) in float32; scikit-learn and LIBSVM get them converted to float64."""
    subjects, voxels = latents.shape[:2]
    few = min(100, voxels)
    separate = [np.ascontiguousarray(latents[:, p], dtype=np.float64) for p in range(few)]
    field = fit_detectors(latents, nu=nu, gamma=gamma, jobs=1, precision="float32")
    labels = np.ones(subjects)
    width = field.arrays.gamma

    def libsvm_only() -> None:
        for p, z in enumerate(separate):
            _libsvm.fit(z, labels, svm_type=2, kernel="rbf", gamma=width[p], nu=nu, tol=1e-3, cache_size=200.0)

    ours, public, libsvm = medians(
        5,
        (lambda: fit_detectors(latents, nu=nu, gamma=gamma, jobs=1, precision="float32"), voxels),
        (lambda: [OneClassSVM(nu=nu, gamma=gamma).fit(z) for z in separate], few),
        (libsvm_only, few),
    )
    s = flatness(np.stack(separate[:20]), width[:20])
    scores = field.decision_function(latents)
    # Without free vectors the offset is not unique; scikit-learn gives one end of the valid range.
    unique = solve_dual(np.stack(separate[:20]), nu=nu, gamma=gamma).free.any(axis=1)
    error = max(
        np.abs(OneClassSVM(nu=nu, gamma=gamma, tol=1e-8).fit(z).decision_function(z) - scores[:, p]).max() / s[p]
        for p, z in enumerate(separate[:20])
        if unique[p]
    )
    print(
        f"  {name:34s} {field.n_support.mean():5.1f} {ours:8.2f} {public:8.0f} {public / ours:6.1f}x"
        f" {libsvm:8.1f} {libsvm / ours:6.2f}x {error:10.1e}"
    )


def table_of_fits(real: dict[str, np.ndarray]) -> None:
    print(
        "\nDetector fit, us per voxel (m = 75, d = 16); error of scores against scikit-learn at tol 1e-8, relative to s"
    )
    print(
        f"  {'':34s} {'n_sv':>5s} {'voxout':>8s} {'sklearn':>8s} {'ratio':>7s} {'LIBSVM':>8s} {'ratio':>7s}"
        f" {'error':>10s}"
    )
    kinds = {"random": random_latents((75, 3000)), "realistic": realistic_latents((75, 3000))} | real
    for kind, values in kinds.items():
        latents = values.astype(np.float32)
        for nu, gamma in ((NU, 1e-2), (NU, "scale"), (0.3, 0.1 / latents.shape[2])):
            compare_fits(f"{kind}, S {len(latents)}, nu {nu}, gamma {gamma!s:.8s}", latents, nu, gamma)
    print("\nFit time by number of subjects, us per voxel (realistic)")
    for subjects in (20, 75, 150, 300, 600):
        latents = realistic_latents((subjects, 300))
        line = []
        for gamma in (1e-2, "scale"):
            (us,) = medians(3, (lambda z=latents, g=gamma: fit_detectors(z, nu=NU, gamma=g, jobs=1), 300))
            line.append(f"gamma {gamma}: {us:7.1f}")
        print(f"  S = {subjects:3d}   {'   '.join(line)}")
    print("\nFit time by number of voxels, us per voxel (realistic, S = 75, gamma 1e-2)")
    for voxels in (1000, 10000, 50000):
        latents = realistic_latents((75, voxels)).astype(np.float32)
        (us,) = medians(1, (lambda z=latents: fit_detectors(z, nu=NU, gamma=1e-2, jobs=1), voxels))
        print(f"  P = {voxels:6d}   {us:7.2f}")


def table_of_models(real: dict[str, np.ndarray]) -> None:
    print("\nStorage in float16: bytes per voxel, largest change of a score in SDs of controls; scoring, us per voxel")
    kinds = {"random": random_latents((95, 3000)), "realistic": realistic_latents((95, 3000))} | real
    for kind, latents in kinds.items():
        controls, held_out = latents[:-20], latents[-20:]
        for gamma in (1e-2, "scale"):
            full = fit_detectors(controls, nu=NU, gamma=gamma, precision="float32").decision_function(held_out)
            half = fit_detectors(controls, nu=NU, gamma=gamma, precision="float16")
            shift = (np.abs(half.decision_function(held_out) - full) / full.std(axis=0)).max()
            with tempfile.TemporaryDirectory() as folder:
                half.save(Path(folder))
                size = sum(file.stat().st_size for file in Path(folder).iterdir()) / len(half)
                loaded = DetectorField.load(Path(folder))
                one = held_out[0].astype(np.float16)
                (us,) = medians(5, (lambda f=loaded, z=one: f.decision_function(z, jobs=1), len(half)))
            print(f"  {kind:14s} gamma {gamma!s:6s} {size:7.0f} B {shift:9.1e} {us:7.3f} us")


def whole_brain(folder: Path) -> None:
    """Fit and save 1.8 million voxels of 75 controls from float16 latents on disk, then score one subject."""
    voxels, subjects = 1_800_000, 75
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "latents.npy"
    if not path.exists():
        latents = np.lib.format.open_memmap(path, "w+", np.float16, (subjects, voxels, DIMENSION))
        for subject in range(subjects):
            latents[subject] = realistic_latents((voxels,), seed=subject).astype(np.float16)
        del latents
    print(f"\nWhole brain at 1 mm: {voxels} voxels, {subjects} controls, wall clock, {os.cpu_count()} cores")
    for gamma in (1e-2, "scale"):
        reset_peak_memory()
        begin = time.perf_counter()
        field = fit_detectors(np.load(path, mmap_mode="r"), nu=NU, gamma=gamma, out=folder / "detectors")
        fitted = time.perf_counter() - begin
        peak = peak_memory_gib()
        one = np.array(np.load(path, mmap_mode="r")[0])
        begin = time.perf_counter()
        DetectorField.load(folder / "detectors").decision_function(one)
        print(
            f"  gamma {gamma!s:6s} fit and saved {fitted:6.1f} s, peak memory {peak:.2f} GiB, "
            f"{field.n_support.mean():.1f} support vectors, scored in {time.perf_counter() - begin:.2f} s"
        )


def reset_peak_memory() -> None:
    """Reset the peak memory of this process (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")


def peak_memory_gib() -> float:
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 2**20


def read_real(run: Path) -> dict[str, np.ndarray]:
    """Raw and whitened latents (S, 3000, d) of a run, at 3000 consecutive voxels in the middle of the mask."""
    out = OutputFolder(run)
    files = sorted((out.latents / SCORER_SPECS["ocsvm"].feature_key).glob("*.npy"))
    if not files:
        raise SystemExit(f"{run}: found no latents, expected those of a run with the scorer ocsvm. Choose another run.")
    start = len(np.load(files[0], mmap_mode="r")) // 2
    latents = np.stack([np.load(file, mmap_mode="r")[start : start + 3000] for file in files])
    whitening = Whitening.load(out.detectors / "ocsvm" / "whitening.safetensors")
    whitened = np.stack([whitening.part(slice(start, start + latents.shape[1])).whiten(subject) for subject in latents])
    return {"real": latents.astype(np.float64), "real, whitened": whitened.astype(np.float64)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, help="output folder of voxout run, whose latents are included")
    parser.add_argument("--brain", type=Path, help="scratch folder for the fit of a whole brain")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    print(
        f"{platform.processor() or platform.machine()}, Python {platform.python_version()}, torch {torch.__version__}"
    )
    real = read_real(arguments.run) if arguments.run else {}
    table_of_gaps()
    table_of_gradients()
    table_of_fits(real)
    table_of_models(real)
    if arguments.brain:
        whole_brain(arguments.brain)
    table_of_losses()


if __name__ == "__main__":
    main()
