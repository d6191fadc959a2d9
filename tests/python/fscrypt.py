"""Gives an encrypting file system a raw key from standard input, as the kernel's fscrypt documentation has it.

    fscrypt.py add MOUNTPOINT       adds the key
    fscrypt.py protect MOUNTPOINT   adds the key, and makes MOUNTPOINT/protected, which is encrypted with it
    fscrypt.py remove MOUNTPOINT    removes the key; it is an error if files keep it in use

Keys are of policy version 2: 32 to 64 bytes, named by an identifier that the kernel derives from them.
"""

import fcntl
import os
import struct
import sys

ADD_ENCRYPTION_KEY = 0xC0506617
REMOVE_ENCRYPTION_KEY = 0xC0406618
SET_ENCRYPTION_POLICY = 0x800C6613

BY_IDENTIFIER = 2
AES_256_XTS, AES_256_CTS = 1, 4
PAD_NAMES_TO_32 = 3


def ioctl(path, request, argument):
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.ioctl(folder, request, argument)
    finally:
        os.close(folder)


def key_specifier(identifier):
    return struct.pack("<II32s", BY_IDENTIFIER, 0, identifier)


def add(mount_point, key):
    argument = bytearray(key_specifier(b"") + struct.pack("<II32x", len(key), 0) + key)
    ioctl(mount_point, ADD_ENCRYPTION_KEY, argument)
    return bytes(argument[8:24])


def protect(folder, identifier):
    os.mkdir(folder)
    policy = struct.pack("<BBBB4x16s", 2, AES_256_XTS, AES_256_CTS, PAD_NAMES_TO_32, identifier)
    ioctl(folder, SET_ENCRYPTION_POLICY, bytearray(policy))


def remove(mount_point, identifier):
    # Dirty pages of its files would keep them in use.
    os.sync()
    argument = bytearray(key_specifier(identifier) + bytes(24))
    ioctl(mount_point, REMOVE_ENCRYPTION_KEY, argument)
    (status,) = struct.unpack_from("<I", argument, 40)
    if status:
        sys.exit("the key was removed, but files that are open keep it in use")


def main():
    verb, mount_point = sys.argv[1:]
    identifier = add(mount_point, sys.stdin.buffer.read())
    if verb == "protect":
        protect(os.path.join(mount_point, "protected"), identifier)
    elif verb == "remove":
        remove(mount_point, identifier)
    elif verb != "add":
        sys.exit(__doc__)


main()
