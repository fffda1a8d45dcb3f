"""Where things are: a simple head in three dimensions, and its projection to the 178 x 218 picture.

Head coordinates, in pixels: u to the right, v down, z to the viewer; the origin is between the eyes, on the
head's axis. Picture coordinates: (x, y), y down. CelebA aligns by the eyes, so these stay where they are and the
rest of the head turns around them.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.data.synth.factors import Factors

WIDTH, HEIGHT = 178, 218
EYES_MIDDLE = (88.5, 111.0)

Points = NDArray[np.float64]  # (..., 2): x, y in pixels; or any array of coordinates
Values = Points | float

_FRONT = 42.0  # depth of the face between the eyes
_YAW, _PITCH, _ROLL = math.radians(32), math.radians(7), math.radians(5)


class Head:
    """The geometry of one face: sizes, the surface, the outline and the projection."""

    def __init__(self, factors: Factors) -> None:
        self.half_width = 45.5 + 3.5 * factors.face_width
        self.top = -65.0
        self.chin = 66.0 + 4.0 * factors.face_length
        self.jaw_power = 0.96 - 0.2 * factors.jaw
        self.eye_u = 19.5 + 0.8 * factors.face_width
        self.nose_v = 25.0 + 2.5 * factors.nose_length
        self.mouth_v = 41.5 + 1.5 * factors.face_length + 0.8 * factors.nose_length
        self.mouth_u = 16.5 + 2.0 * factors.mouth_width + 1.5 * max(factors.smile, 0)
        # Corners of the mouth against its middle: a smile lifts them.
        self.mouth_curve = -4.6 * factors.smile if factors.smile > 0 else -2.2 * factors.smile
        self.yaw_sine, self.yaw_cosine = math.sin(_YAW * factors.yaw), math.cos(_YAW * factors.yaw)
        # Pictures as complex numbers x + iy: what one step along u, v or z adds. Before the roll:
        turn = complex(math.cos(_ROLL * factors.roll), math.sin(_ROLL * factors.roll))
        pitch_sine, pitch_cosine = math.sin(_PITCH * factors.pitch), math.cos(_PITCH * factors.pitch)
        self._step_u = turn * complex(self.yaw_cosine, -self.yaw_sine * pitch_sine)
        self._step_v = turn * complex(0.0, pitch_cosine)
        self._step_z = turn * complex(self.yaw_sine, self.yaw_cosine * pitch_sine)
        # The silhouette does not turn with the face, only its axis does.
        self._across, self._axis, self._rim_axis = turn, turn * self.yaw_sine, turn * complex(self.yaw_sine, pitch_sine)
        # Where the head's axis falls once the eyes are moved back to their place (most of the way, as aligners do).
        x, y = 0.85 * _FRONT * self.yaw_sine, _FRONT * self.yaw_cosine * pitch_sine
        self._origin = complex(*EYES_MIDDLE) - turn * complex(x, y)

    def place(self, u: Values, v: Values, z: Values) -> Points:
        """Project head coordinates to the picture, (..., 2)."""
        return _points(u * self._step_u + (v * self._step_v + (z * self._step_z + self._origin)))

    def on_face(self, u: Values, v: Values, lift: float = 0.0) -> Points:
        """Project a point of the surface, `lift` pixels above it. What the head hides is moved to its rim."""
        # The face is an ellipsoid; at and beyond its rim z is 0.
        rest = 1 - u * u * (1.04 * self.half_width) ** -2 - v * v * 95.0**-2
        z = _FRONT * np.sqrt(np.maximum(rest, 0.0)) + lift
        points = self.place(u, v, z)
        front = z * self.yaw_cosine - u * self.yaw_sine
        if front.min() > 10:
            return points
        turned = np.minimum(np.maximum((10.0 - front) / 14.0, 0.0), 1.0) * (u * self.yaw_sine > 0)
        rim = self._rim(np.broadcast_to(v, turned.shape), 1.0 if self.yaw_sine > 0 else -1.0)
        hidden: Points = (turned * turned * (3 - 2 * turned))[..., None]
        return points + hidden * (rim - points)

    def outline(self, angles: Points) -> Points:
        """The head's silhouette: 0 is right, pi/2 the chin, -pi/2 the top."""
        cosine, sine = np.cos(angles), np.sin(angles)
        power = np.where(sine > 0, self.jaw_power, 0.92)
        across = self.half_width * np.sign(cosine) * np.abs(cosine) ** power
        v = np.where(sine > 0, self.chin, -self.top) * sine
        return self._silhouette(across, v)

    def behind(self, across: Values, v: Values, z: float = -8.0) -> Points:
        """Project what does not turn with the face (neck, body, hair at the back): `across` the axis at depth z."""
        return _points(across * self._across + (v * self._step_v + (z * self._axis + self._origin)))

    def _rim(self, v: Points, side: float) -> Points:
        share = np.minimum(np.abs(v) / np.where(v > 0, self.chin, -self.top), 0.999)
        power = np.where(v > 0, self.jaw_power, 0.92)
        return self._silhouette(side * self.half_width * (1 - share * share) ** (power / 2), v)

    def _silhouette(self, across: Points, v: Points) -> Points:
        # The skull sits on the axis, the chin well before it.
        low = np.minimum(np.maximum(v / self.chin, 0.0), 1.0)
        z = 3.0 + 27.0 * low * low * (3 - 2 * low)
        return _points(across * self._across + v * self._step_v + (z * self._rim_axis + self._origin))


def _points(numbers: NDArray[np.complexfloating[Any, Any]] | complex) -> Points:
    """x + iy as (..., 2)."""
    array = np.asarray(numbers, dtype=np.complex128)
    return array.reshape(*array.shape, 1).view(np.float64)


def landmarks(factors: Factors) -> dict[str, tuple[int, int]]:
    """CelebA's five landmarks of a painted face, (x, y) in pixels; left is the viewer's left."""
    head = Head(factors)
    mouth = mouth_line(head, np.array([-1.0, 1.0]))
    points = {
        "lefteye": head.on_face(-head.eye_u, 0.0),
        "righteye": head.on_face(head.eye_u, 0.0),
        "nose": head.place(0.0, head.nose_v - 2.0, 54.0),
        "leftmouth": mouth[0],
        "rightmouth": mouth[1],
    }
    return {name: (round(float(point[0])), round(float(point[1]))) for name, point in points.items()}


def mouth_line(head: Head, along: Points, down: Values = 0.0) -> Points:
    """Points of the line between the lips: -1 is its left corner, 1 its right one; `down` pixels below it."""
    v = head.mouth_v + head.mouth_curve * (along * along - 0.4) + down
    return head.place(head.mouth_u * along, v, 44.0 - 8.0 * along * along)
