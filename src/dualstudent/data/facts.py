"""What is known of each data set before any file is read."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

SPLITS = ("train", "test", "test_lossless")

_GTSRB = """Speed limit (20km/h)|Speed limit (30km/h)|Speed limit (50km/h)|Speed limit (60km/h)
Speed limit (70km/h)|Speed limit (80km/h)|End of speed limit (80km/h)|Speed limit (100km/h)
Speed limit (120km/h)|No passing|No passing for vehicles over 3.5 metric tons
Right-of-way at the next intersection|Priority road|Yield|Stop|No vehicles
Vehicles over 3.5 metric tons prohibited|No entry|General caution|Dangerous curve to the left
Dangerous curve to the right|Double curve|Bumpy road|Slippery road|Road narrows on the right|Road work
Traffic signals|Pedestrians|Children crossing|Bicycles crossing|Beware of ice/snow|Wild animals crossing
End of all speed and passing limits|Turn right ahead|Turn left ahead|Ahead only|Go straight or right
Go straight or left|Keep right|Keep left|Roundabout mandatory|End of no passing
End of no passing by vehicles over 3.5 metric tons"""

_CIFAR100 = """apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus
butterfly camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile
cup dinosaur dolphin elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower
leopard lion lizard lobster man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter
palm_tree pear pickup_truck pine_tree plain plate poppy porcupine possum rabbit raccoon ray road rocket
rose sea seal shark shrew skunk skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper
table tank telephone television tiger tractor train trout tulip turtle wardrobe whale willow_tree wolf
woman worm"""

_CIFAR10 = "airplane automobile bird cat deer dog frog horse ship truck"
_FASHION = "T-shirt/top Trouser Pullover Dress Coat Sandal Shirt Sneaker Bag"
_DIGITS = tuple("0123456789")


@dataclass(frozen=True)
class DataSet:
    """Facts of a data set: image shape (c, h, w), class names, usual mean and std of pixels in [0, 1]."""

    name: str
    shape: tuple[int, int, int]
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]


# The usual means and deviations, over the pixels of the train split (of all images for digits).
# Recomputed for this table from the packed data, they agree within 0.004; those of svhn are as
# published and not recomputed.
DATA_SETS: Mapping[str, DataSet] = MappingProxyType(
    {
        facts.name: facts
        for facts in (
            DataSet("digits", (1, 8, 8), _DIGITS, (0.3053,), (0.3759,)),
            DataSet("mnist", (1, 28, 28), _DIGITS, (0.1307,), (0.3081,)),
            DataSet("fashion-mnist", (1, 28, 28), (*_FASHION.split(), "Ankle boot"), (0.2860,), (0.3530,)),
            DataSet("svhn", (3, 32, 32), _DIGITS, (0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)),
            DataSet(
                "gtsrb",
                (3, 32, 32),
                tuple(_GTSRB.replace("\n", "|").split("|")),
                (0.3403, 0.3121, 0.3214),
                (0.2724, 0.2608, 0.2669),
            ),
            DataSet(
                "cifar10",
                (3, 32, 32),
                tuple(_CIFAR10.split()),
                (0.4914, 0.4822, 0.4465),
                (0.2470, 0.2435, 0.2616),
            ),
            DataSet(
                "cifar100",
                (3, 32, 32),
                tuple(_CIFAR100.split()),
                (0.5071, 0.4865, 0.4409),
                (0.2673, 0.2564, 0.2762),
            ),
        )
    }
)


def find(name: str) -> DataSet | None:
    """Return the facts of a data set; case, hyphens and underscores do not matter."""

    def squash(text: str) -> str:
        return text.lower().replace("-", "").replace("_", "")

    return next((facts for facts in DATA_SETS.values() if squash(facts.name) == squash(name)), None)


def known_as(name: str) -> str:
    """Return what a manifest calls a data set: its proper name, a folder's as it was given."""
    facts = find(name)
    return name if facts is None else facts.name
