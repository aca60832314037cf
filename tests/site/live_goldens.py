"""Numbers of the live figures, figure after figure (hence the length), from formulas other than the page's.

Each entry: the function in ``book/figures``, its arguments, and what some of its results must be. A key such
as ``path.10`` means ``result["path"][10]``.
"""

from __future__ import annotations

from math import pi, radians
from typing import Any

Golden = tuple[str, dict[str, Any], dict[str, Any]]


def _compass(d: list[float], degrees: float, eps: list[float], gain: float, angle: float) -> Golden:
    arguments = {"g": [3, 4], "d": d, "phi": radians(degrees), "rho": 1}
    return "compass", arguments, {"eps": eps, "gain": gain, "angle": angle}


def _rulers(w: float, left: float, right: float, half: float, F: float, p: float) -> Golden:
    expected = {"left": left, "right": right, "fisherHalf": half, "F": F, "p": p}
    return "rulers", {"w": w, "kl": 0.05}, expected


def _twin(a: float, hmax: float, worst: float) -> Golden:
    return "twin", {"a": a, "rho": 0.1}, {"hmax": hmax, "worst": worst, "adaptive": 0.0214392136}


def _rename(rule: str, here: list[float], there: list[float], change: float) -> Golden:
    arguments = {"w": [2, 1], "A": [10, 1], "rho": 0.1, "rule": rule}
    return "rename", arguments, {"here": here, "there": there, "change": change}


def _graphwalk(c: float, monge: float, rises: tuple[float, float], lines: tuple[float, float]) -> Golden:
    expected = {
        "slope": c,
        "sam": 1.5,
        "monge": monge,
        "riseSam": rises[0],
        "riseMonge": rises[1],
        "linearSam": lines[0],
        "linearMonge": lines[1],
    }
    return "graphwalk", {"c": c, "x": 1, "rho": 0.5}, expected


def _race(rule: str, rho: float, expected: dict[str, Any]) -> Golden:
    return "race", {"rule": rule, "w": [-1.5, 0.5], "eta": 0.01, "rho": rho}, expected


def _twoweight(mu: float, newton: bool, expected: dict[str, Any]) -> Golden:
    return "twoweight", {"w0": 2, "w1": 1, "mu": mu, "newton": newton}, expected


def _probes(turn: float, gamma: float, expected: dict[str, Any]) -> Golden:
    arguments = {"turn": turn, "T": 50, "a": 0.05, "size": 1, "refits": 40, "gamma": gamma}
    return "probes", arguments, expected


def _contrast(hbar: float, h: float, expected: dict[str, Any], beta: float = 0.0) -> Golden:
    return "contrast", {"eta": 0.05, "rho": 0.4, "beta": beta, "mu": 0.05, "hbar": hbar, "h": h}, expected


def _filter(w: float, s: float) -> Golden:
    return "filter", {"w": w, "T": 50, "a": 0.05}, {"s": s}


_SAM_LIMITS = {"thresholds.gd": 40, "thresholds.sam": 8.82782219, "chi": 8.82782219}
_RAVINE = {"h": [10, 1], "eta": 0.18, "u": [1, 1], "w": [1, 3]}
_BALL = {"w": [2, 1], "rho": 0.1, "eta": 0.05, "alpha": 0}
_CYCLE = {"h": 4, "eta": 0.1, "rho": 0.1, "x": 1}
_VALLEY = {"w": [1.5, 0.5], "eta": 0.1, "alpha": 0, "n": 500}
_TRAP = {"w": [0.5, 0.3], "h": 20, "eta": 0.0025, "rho": 0.5}

GOLDENS: list[Golden] = [
    _compass([1, 4], 0, [0.832050294, 0.277350098], 3.60555128, 34.6951535),
    _compass([1, 4], 15, [0.851875003, 0.417375058], 4.22512524, 27.0276182),
    _compass([1, 4], 30, [0.794707251, 0.579414388], 4.70177931, 17.0346262),
    _compass([1, 4], 45, [0.680120175, 0.730499447], 4.96235831, 6.08469387),
    _compass([1, 4], 60, [0.525132782, 0.849425539], 4.97310051, 5.14466676),
    _compass([1, 4], 90, [0.175561721, 0.936329178], 4.27200187, 26.2502424),
    _compass([1, 1], 0, [0.6, 0.8], 5, 0),
    _compass([0.25, 4], 0, [1.8973666, 0.158113883], 6.32455532, 48.3664607),
    _compass([9.1, 16.1], 0, [0.234121031, 0.176439038], 1.40811925, 16.1275758),
    _compass([10, 1], 0, [0.0729756383, 0.973008511], 4.11096096, 32.5807443),
    (
        "ravine",
        _RAVINE,
        {
            "path.1": [-0.8, 2.46],
            "path.2": [0.64, 2.0172],
            "path.3": [-0.512, 1.654104],
            "path.10": [0.107374182, 0.412344094],
            "path.20": [0.011529215, 0.056675884],
            "path.40": [0.0001329228, 0.00107071861],
            "rate": 0.82,
            "stepsToMillionth": 69.6167559,
        },
    ),
    _rulers(0, -0.637738935, 0.637738935, 0.632455532, 0.25, 0.5),
    _rulers(2, 1.12436136, 3.12273769, 0.975929884, 0.104993585, 0.880797078),
    _rulers(5, 2.58201575, 13.4738091, 3.87840041, 0.00664805667, 0.993307149),
    _twin(1, 4, 0.0214392136),
    _twin(2, 8.5, 0.043550852),
    _twin(5, 50.08, 0.250898868),
    _twin(10, 200.02, 1.00039929),
    _rename("sam", [0.0447213595, 0.0894427191], [0.980580676, 0.0196116135], 9.38460997),
    _rename("monge", [0.00975900073, 0.0195180015], [0.0480192423, 0.000960384846], 1.9486625),
    _rename("relative", [0.141421356, 0.0707106781], [0.141421356, 0.0707106781], 0),
    (
        "samstep",
        _BALL,
        {
            "g": [2, 4],
            "e": [0.0447213595, 0.0894427191],
            "wp": [2.04472136, 1.08944272],
            "gp": [2.67481458, 5.02022768],
            "Lp": 1.50701845,
            "linear": 1.4472136,
            "worst": 1.50720276,
            "worstAngle": 62,
            "next": [1.86625927, 0.748988616],
            "plain": [1.9, 0.8],
        },
    ),
    (
        "cycle",
        _CYCLE | {"alpha": 0},
        {
            "path.1": 0.56,
            "path.2": 0.296,
            "path.3": 0.1376,
            "path.4": 0.04256,
            "path.5": -0.014464,
            "path.6": 0.0313216,
            "path.10": 0.0258192794,
            "path.20": 0.0250049539,
            "path.40": 0.0250000002,
            "amplitude": 0.025,
        },
    ),
    (
        "cycle",
        _CYCLE | {"alpha": 1},
        {
            "path.1": 0.590298575,
            "path.2": 0.338579876,
            "path.3": 0.17938794,
            "path.10": -0.026468543,
            "path.40": -0.0248771381,
            "amplitude": 0.0248771373,
        },
    ),
    (
        "valley",
        _VALLEY | {"rho": 0.2},
        {
            "path.1": [1.42540014, 0.264649036],
            "path.2": [1.39429867, 0.120953741],
            "path.3": [1.37984752, 0.0255322663],
            "path.10": [1.32829442, -0.0331047659],
            "path.100": [0.842514052, -0.0187781313],
            "path.500": [0.136898374, -0.0107360282],
        },
    ),
    (
        "valley",
        _VALLEY | {"rho": 0},
        {"path.1": [1.4625, 0.3375], "path.10": [1.43104382, 0.0124897309], "path.500.0": 1.43100061},
    ),
    (
        "trap",
        _TRAP | {"alpha": 0},
        {
            "path.1": [0.453057644, 0.303008462],
            "path.2": [0.409037528, 0.305176292],
            "path.10": [0.155244424, 0.285868558],
            "path.100.0": 0.0131687203,
            "basin": 0.5,
        },
    ),
    (
        "trap",
        _TRAP | {"alpha": 1},
        {
            "path.1": [0.473081507, 0.312866036],
            "path.2": [0.447486751, 0.326135733],
            "path.10": [0.284235148, 0.446973167],
            "path.50.1": 0.951680301,
            "path.100.1": 1.01279589,
            "basin": 0.154211642,
        },
    ),
    _graphwalk(1, 1.35355339, (0.625, 0.416053391), (0.5, 0.353553391)),
    _graphwalk(10, 1.04975186, (6.25, 0.509894833), (5, 0.497518595)),
    _graphwalk(0.1, 1.4975186, (0.0625, 0.0621280971), (0.05, 0.0497518595)),
    _race(
        "gd",
        0,
        {
            "path.1": [-1.4825, 0.4475],
            "path.10": [-1.41089557, 0.0849704618],
            "path.50": [-1.5060065, -0.544547161],
            "path.100": [-1.54335739, -0.640839621],
            "path.200": [-1.54586816, -0.646863684],
        },
    ),
    _race(
        "sam",
        1,
        {
            "path.1": [-1.3947926, 0.368100497],
            "path.10": [-0.937666607, -0.152678267],
            "path.50": [-0.431493927, -0.343968407],
            "path.100": [-0.0323588475, -0.0309335443],
            "path.200": [-0.00374593264, -0.00277610631],
        },
    ),
    _race(
        "monge",
        1,
        {
            "path.1": [-1.47270853, 0.436485592],
            "path.10": [-1.32188856, -0.00342479355],
            "path.50": [-1.11850904, -0.786402072],
            "path.100": [-1.04162737, -0.968403116],
            "path.200": [-0.945418516, -0.941308233],
        },
    ),
    _race(
        "clip",
        1,
        {
            "path.1": [-1.47253172, 0.436296968],
            "path.10": [-1.31754537, -0.00706197162],
            "path.50": [-1.07093578, -0.81299471],
            "path.100": [-1.00484396, -0.949015131],
            "path.200": [-0.967342051, -0.964493334],
        },
    ),
    _race(
        "sam",
        0.6,
        {
            "path.1": [-1.43998132, 0.405148887],
            "path.10": [-1.16311163, -0.0949410875],
            "path.200": [-1.01106869, -0.972749437],
        },
    ),
    ("stranded", {"rule": "gd", "eta": 0.01, "rho": 0}, {"count": 10}),
    ("stranded", {"rule": "sam", "eta": 0.01, "rho": 1}, {"count": 32}),
    ("stranded", {"rule": "monge", "eta": 0.01, "rho": 1}, {"count": 16}),
    ("stranded", {"rule": "sam", "eta": 0.01, "rho": 0.6}, {"count": 16}),
    ("stranded", {"rule": "clip", "eta": 0.01, "rho": 1}, {"count": 16}),
    (
        "steer",
        {"A": 1, "B": 1, "Q": 1, "R": 1, "QN": 1, "N": 5, "x": 1},
        {
            "P": [144 / 89, 55 / 34, 21 / 13, 8 / 5, 3 / 2, 1],
            "K": [-0.617977528, -0.617647059, -0.615384615, -0.6, -0.5],
            "xs": [1, 0.382022472, 0.146067416, 0.0561797753, 0.0224719101, 0.0112359551],
            "us": [-0.617977528, -0.235955056, -0.0898876404, -0.0337078652, -0.0112359551],
            "cost": 0.808988764,
        },
    ),
    _twoweight(
        2,
        True,
        {
            "stages": [0.4, 10],
            "K1": -0.6,
            "k1": -0.4,
            "P1": -1.6,
            "p1": -0.4,
            "step": [1, -1],
            "det": 4,
            "minimum": True,
            "Lnext": 1,
        },
    ),
    _twoweight(
        1,
        True,
        {
            "stages": [-1, 9],
            "K1": -2 / 3,
            "k1": -4 / 9,
            "P1": -2,
            "p1": -2 / 3,
            "step": [-2 / 3, 0],
            "det": -9,
            "minimum": False,
            "Lnext": 1 / 9,
        },
    ),
    _twoweight(
        1,
        False,
        {
            "stages": [11 / 9, 9],
            "K1": -4 / 9,
            "k1": -4 / 9,
            "P1": 2 / 9,
            "p1": 2 / 9,
            "step": [-2 / 11, -4 / 11],
            "det": 11,
            "minimum": True,
            "Lnext": 0.0246567857,
        },
    ),
    _probes(
        0,
        0,
        {
            "hist.0": {"error": 0.824742834, "J": -1.08217081},
            "hist.1": {"error": 0.752302615, "J": -1.26781626},
            "hist.9": {"error": 0.70712181, "J": -1.37496546},
            "hist.39": {"error": 0.707106781, "J": -1.375},
            "U": [[2.75, 0], [-2.25, 1]],
        },
    ),
    _probes(
        50,
        0,
        {
            "hist.0": {"error": 0.824742834, "J": -1.08217081},
            "hist.1": {"error": 0.794513668, "J": -0.225436247},
            "hist.9": {"error": 0.10522714, "J": -1.37003869},
            "hist.39": {"error": 5.35760612e-05, "J": -2.34927858},
            "U": [[2.7498545, -2.25004641], [-2.24985451, 2.7500464]],
        },
    ),
    _probes(
        50,
        0.5,
        {
            "hist.0": {"error": 0.904983192, "J": -0.828218164},
            "hist.1": {"error": 0.895099769, "J": -0.197388257},
            "hist.9": {"error": 0.364330762, "J": -1.27801482},
            "hist.39": {"error": 0.0120127583, "J": -2.34904541},
            "U": [[2.7217198, -2.2306936], [-2.22172049, 2.73069351]],
        },
    ),
    ("rotated", {"theta": 0, "k": 10}, {"diagonal": 1, "scalar": 10, "dense": 1}),
    ("rotated", {"theta": 15, "k": 10}, {"diagonal": 3.75896965}),
    ("rotated", {"theta": 30, "k": 10}, {"diagonal": 7.9492012}),
    ("rotated", {"theta": 45, "k": 10}, {"diagonal": 10}),
    _contrast(
        0.2,
        0.2,
        _SAM_LIMITS
        | {
            "U": 4,
            "contrast": 0.8,
            "thresholds.llqr": 10,
            "thresholds.both": 2.20695555,
            "multipliers": {"gd": 0.99, "llqr": 0.96, "sam": 0.9892, "both": 0.9472},
        },
    ),
    _contrast(
        0.2,
        3,
        _SAM_LIMITS | {"contrast": 12, "multipliers": {"gd": 0.85, "llqr": 0.4, "sam": 0.67, "both": -2.48}},
    ),
    _contrast(
        10,
        10,
        _SAM_LIMITS
        | {
            "U": 0.0995024876,
            "contrast": 0.995024876,
            "thresholds.llqr": 402,
            "thresholds.both": 88.719613,
            "multipliers": {"gd": 0.5, "llqr": 0.950248756, "sam": -1.5, "both": 0.930447266},
        },
    ),
    _contrast(0.2, 3, {"chi": 12.5906105}, beta=0.9),
    (
        "clock",
        {
            "T": 50,
            "every": 1000,
            "product": 4 / 3,
            "probe": 1,
            "gamma": 0.95,
            "lrU": 1e-3,
            "clip": 5,
            "beta": 0.9,
            "perturbed": True,
        },
        {
            "overhead": 0.0666666667,
            "total": 2.06666667,
            "memory": 20000,
            "travelPerRefit": 2.0523192,
            "keptPerRefit": 0.10261596,
        },
    ),
    _filter(0.1, 2.99518699),
    _filter(0.5, 1.7180119),
    _filter(1, 1),
    _filter(2, 0.502576888),
    _filter(5, 0.200000453),
    _filter(10, 0.1),
    _filter(0, 3.5),
]

# The road, seed 1: weights 0, 5 and 24 and the loss of the bowl without its pits after 10 and 30 steps.
ROAD: dict[str, tuple[dict[str, Any], dict[int, tuple[float, float, float, float]], float | None]] = {
    "GD": (
        {"P": False, "eta": 0.01, "rho": 0},
        {
            10: (0.00369515205, 3.99988972, 3.97843773, 15.8884577),
            30: (0.00298118953, 4.00365757, 3.9653648, 15.8361071),
        },
        15.8938251,
    ),
    "preconditioned": (
        {"P": True, "eta": 0.005, "rho": 0},
        {
            10: (-0.000244488413, 3.96262868, 4.02929663, 15.868601),
            30: (-0.000208906746, 4.00610983, 3.9060175, 15.8102257),
        },
        16.0497953,
    ),
    "SAM": (
        {"P": False, "eta": 0.01, "rho": 1.5},
        {
            10: (0.939472549, 4.00288678, 3.97753554, 128.206849),
            30: (0.936864497, 4.00382693, 3.96446841, 128.288921),
        },
        129.003154,
    ),
    "LLQR+SAM": (  # chaotic: only the first steps are the same in two programs
        {"P": True, "eta": 0.005, "rho": 1.5},
        {
            10: (-0.000249347574, 4.44604608, 3.478352, 14.0267956),
            30: (-0.000212294203, 4.43458738, 3.60980316, 13.8579996),
        },
        None,
    ),
}

# The metric of the graph at the slope (3, 4): its long axis lies along the slope.
GOLDENS.append((
    "compass",
    {"g": [3, 4], "d": [1, 26], "phi": 0.9272952180016122 - pi / 2, "rho": 1},
    {"eps": [0.117669681, 0.156892908], "gain": 0.980580676, "angle": 0},
))

# Three points stand at 1, 3 and 5 of the 6 that three steps of cost 2 take.
RUNS = {"curves": {"a": [4, 2, 1], "b": [9, 3, 0]}, "costs": {"a": 2, "b": 1}, "steps": 3}
GOLDENS += [
    ("fight", RUNS | {"budget": 0.5}, {"loss": {"a": 4, "b": 9}, "done": {"a": False, "b": False}}),
    ("fight", RUNS | {"budget": 2}, {"loss": {"a": 3, "b": 1.5}, "done": {"a": False, "b": False}}),
    ("fight", RUNS | {"budget": 3}, {"loss": {"a": 2, "b": 0}, "done": {"a": False, "b": True}}),
    ("fight", RUNS | {"budget": 6}, {"loss": {"a": 1, "b": 0}, "done": {"a": True, "b": True}}),
]
