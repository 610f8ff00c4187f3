"""What is resident is read from the kernel's own account, and summed up by what it is."""

from benchmarks.resident import Mapping, by_part, mappings

SMAPS = """\
7f01e9600000-7f01f8a25000 rw-p 00000000 fe:00 2146401                    /cache/prepared/m3/weights.data
Rss:              256000 kB
Pss:              120000 kB
7f0224a00000-7f0224a25000 rw-p 0f425000 fe:00 2146401                    /cache/prepared/m3/weights.data
Pss:                4000 kB
7f0224b00000-7f0224b25000 r-xp 00000000 fe:00 11                         /lib/libc.so.6
Pss:                1000 kB
7f0225b00000-7f0225b25000 rw-p 00000000 00:00 0
Pss:               50000 kB
7ffd00000000-7ffd00021000 rw-p 00000000 00:00 0                          [stack]
Pss:                 100 kB
"""


def test_what_is_resident_is_read_with_the_file_it_comes_from():
    found = mappings(SMAPS)
    assert found[0] == Mapping(file="/cache/prepared/m3/weights.data", mb=120.0)
    assert [mapping.file for mapping in found[2:]] == ["/lib/libc.so.6", "", "[stack]"]


def test_the_parts_add_up_to_all():
    parts = by_part(mappings(SMAPS), "/cache/prepared")
    assert parts.pop("resident") == sum(parts.values())
    assert parts == {
        "private": 50.1,
        "the model's largest mapping": 120.0,
        "its other mappings": 4.0,
        "libraries": 1.0,
    }
