/* Preloaded into a process to record, cut or fail what it does to files below one folder.
 *
 *   SHIM_ROOT     the folder, absolute
 *   SHIM_LOG      file that every change is written to, with its data, in the order of completion
 *   SHIM_KILL_AT  the process dies instead of making its n-th change
 *   SHIM_TORN     ... after the first half of it, if it is a write of more than a page
 *   SHIM_FAIL_AT  the n-th change fails with EIO, and nothing of it is done
 *   SHIM_COUNT    file that the number of changes is written to at exit
 *
 * A change is a call that alters files or makes them durable. SHIM_ROOT/acks is recorded but does not count: it is what the
 * process says, not what it does. Whatever can't be recorded (a shared writable mapping) is recorded as just that, so that
 * no test passes for lack of seeing it. One lock is held over each call and its record.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#define MAX_FDS 4096
#define MAX_PATH 4096

enum kind { UNSEEN, COUNTED, SAID };

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static char root[MAX_PATH];
static size_t root_len;
static int log_fd = -1;
static long changes, kill_at = -1, fail_at = -1;
static int torn;
static uint64_t syncs;
static unsigned char fds[MAX_FDS];

static long number(const char *name, long otherwise) {
  const char *text = getenv(name);
  return text ? atol(text) : otherwise;
}

__attribute__((constructor)) static void begin(void) {
  const char *folder = getenv("SHIM_ROOT");
  const char *file = getenv("SHIM_LOG");
  if (!folder || strlen(folder) >= sizeof root) return;
  kill_at = number("SHIM_KILL_AT", -1);
  fail_at = number("SHIM_FAIL_AT", -1);
  torn = (int)number("SHIM_TORN", 0);
  if (file) log_fd = (int)syscall(SYS_openat, AT_FDCWD, file, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
  strcpy(root, folder);
  root_len = strlen(root);
}

__attribute__((destructor)) static void end(void) {
  const char *file = getenv("SHIM_COUNT");
  char text[32];
  if (!root_len || !file) return;
  int length = snprintf(text, sizeof text, "%ld\n", changes);
  int fd = (int)syscall(SYS_openat, AT_FDCWD, file, O_WRONLY | O_CREAT | O_TRUNC, 0600);
  if (fd >= 0) syscall(SYS_write, fd, text, length);
}

/* ---- what is recorded ---- */

struct __attribute__((packed)) header {
  uint8_t kind;
  uint64_t a, b;
  uint32_t length;
};

static void record2(char kind, uint64_t a, uint64_t b, const void *p, size_t n, const void *q, size_t m) {
  if (log_fd < 0) return;
  struct header header = {(uint8_t)kind, a, b, (uint32_t)(n + m)};
  struct iovec parts[3] = {{&header, sizeof header}, {(void *)p, n}, {(void *)q, m}};
  if (syscall(SYS_writev, log_fd, parts, 3) != (long)(sizeof header + n + m)) abort();
}

static void record(char kind, uint64_t a, uint64_t b, const void *p, size_t n) { record2(kind, a, b, p, n, "", 0); }

static uint64_t inode(int fd) {
  struct stat s;
  return fstat(fd, &s) == 0 ? s.st_ino : 0;
}

/* ---- which calls are seen ---- */

static enum kind kind_of(const char *path) {
  if (!root_len || strncmp(path, root, root_len) != 0) return UNSEEN;
  if (path[root_len] != '/' && path[root_len] != 0) return UNSEEN;
  return strcmp(path + root_len, "/acks") == 0 ? SAID : COUNTED;
}

static enum kind kind_of_fd(int fd) { return root_len && fd >= 0 && fd < MAX_FDS ? (enum kind)fds[fd] : UNSEEN; }

/* The absolute path in `whole`, which holds MAX_PATH bytes. */
static const char *resolve(int dir, const char *path, char *whole) {
  if (path[0] == '/') return path;
  char link[64];
  if (dir == AT_FDCWD) strcpy(link, "/proc/self/cwd");
  else snprintf(link, sizeof link, "/proc/self/fd/%d", dir);
  ssize_t n = readlink(link, whole, MAX_PATH - 1);
  if (n < 0 || n + strlen(path) + 2 > MAX_PATH) return path;
  whole[n] = '/';
  strcpy(whole + n + 1, path);
  return whole;
}

/* Before a change, with the lock held. True if it is to fail. */
static int strike(int fd, const void *data, size_t n, off_t offset) {
  changes++;
  if (changes == kill_at) {
    if (torn && n > 4096) syscall(SYS_pwrite64, fd, data, (n / 2 + 4095) / 4096 * 4096, offset);
    kill(getpid(), SIGKILL);
    for (;;) pause();
  }
  return changes == fail_at;
}

static int strike_name(enum kind kind) { return kind == COUNTED && strike(-1, 0, 0, 0); }

static int fail(void) {
  errno = EIO;
  return -1;
}

/* Unlocks, and leaves errno as the call set it. */
static long leave(long result) {
  int error = errno;
  pthread_mutex_unlock(&lock);
  errno = error;
  return result;
}

/* ---- opening and closing ---- */

static int open_at(int dir, const char *path, int flags, mode_t mode) {
  char buffer[MAX_PATH];
  if (!root_len) return (int)syscall(SYS_openat, dir, path, flags, mode);
  const char *whole = resolve(dir, path, buffer);
  enum kind kind = kind_of(whole);
  if (kind == UNSEEN) return (int)syscall(SYS_openat, dir, path, flags, mode);
  struct stat s;
  pthread_mutex_lock(&lock);
  int existed = stat(whole, &s) == 0;
  int creates = (flags & O_CREAT) && !existed;
  int empties = (flags & O_TRUNC) && existed && s.st_size > 0;
  if ((creates || empties) && strike_name(kind)) return (int)leave(fail());
  int fd = (int)syscall(SYS_openat, dir, path, flags, mode);
  if (fd >= 0 && fd < MAX_FDS) {
    fds[fd] = (unsigned char)kind;
    if (kind == COUNTED) record(creates ? 'C' : 'O', inode(fd), 0, whole, strlen(whole));
    if (empties) record('T', inode(fd), 0, "", 0);
  } else if (fd >= 0) {
    record('X', 0, 0, "too many descriptors", 20);
  }
  return (int)leave(fd);
}

#define MODE(last) \
  mode_t mode = 0; \
  if (flags & (O_CREAT | __O_TMPFILE)) { va_list rest; va_start(rest, last); mode = va_arg(rest, mode_t); va_end(rest); }
int open(const char *path, int flags, ...) { MODE(flags) return open_at(AT_FDCWD, path, flags, mode); }
int open64(const char *path, int flags, ...) { MODE(flags) return open_at(AT_FDCWD, path, flags, mode); }
int openat(int dir, const char *path, int flags, ...) { MODE(flags) return open_at(dir, path, flags, mode); }
int openat64(int dir, const char *path, int flags, ...) { MODE(flags) return open_at(dir, path, flags, mode); }
int creat(const char *path, mode_t mode) { return open_at(AT_FDCWD, path, O_CREAT | O_WRONLY | O_TRUNC, mode); }

int close(int fd) {
  if (kind_of_fd(fd) == UNSEEN) return (int)syscall(SYS_close, fd);
  pthread_mutex_lock(&lock);
  fds[fd] = UNSEEN;
  return (int)leave(syscall(SYS_close, fd));
}

static int control(int fd, int command, long argument) {
  int result = (int)syscall(SYS_fcntl, fd, command, argument);
  int duplicates = command == F_DUPFD || command == F_DUPFD_CLOEXEC;
  if (duplicates && result >= 0 && result < MAX_FDS && kind_of_fd(fd) != UNSEEN) fds[result] = fds[fd];
  return result;
}
#define ARGUMENT \
  va_list rest; va_start(rest, command); long argument = va_arg(rest, long); va_end(rest);
int fcntl(int fd, int command, ...) { ARGUMENT return control(fd, command, argument); }
int fcntl64(int fd, int command, ...) { ARGUMENT return control(fd, command, argument); }

/* ---- content ---- */

static ssize_t write_at(int fd, const void *data, size_t n, off_t offset, int positioned) {
  pthread_mutex_lock(&lock);
  if (!positioned) {
    struct stat s;
    int appends = (int)syscall(SYS_fcntl, fd, F_GETFL, 0) & O_APPEND;
    offset = appends && fstat(fd, &s) == 0 ? s.st_size : syscall(SYS_lseek, fd, 0, SEEK_CUR);
  }
  if (kind_of_fd(fd) == COUNTED && strike(fd, data, n, offset)) return leave(fail());
  long written = positioned ? syscall(SYS_pwrite64, fd, data, n, offset) : syscall(SYS_write, fd, data, n);
  if (written > 0) record(kind_of_fd(fd) == SAID ? 'A' : 'W', inode(fd), (uint64_t)offset, data, (size_t)written);
  return leave(written);
}
ssize_t pwrite(int fd, const void *data, size_t n, off_t offset) {
  if (kind_of_fd(fd) == UNSEEN) return syscall(SYS_pwrite64, fd, data, n, offset);
  return write_at(fd, data, n, offset, 1);
}
ssize_t pwrite64(int fd, const void *data, size_t n, off64_t offset) { return pwrite(fd, data, n, offset); }
ssize_t write(int fd, const void *data, size_t n) {
  if (kind_of_fd(fd) == UNSEEN) return syscall(SYS_write, fd, data, n);
  return write_at(fd, data, n, 0, 0);
}
ssize_t writev(int fd, const struct iovec *parts, int count) {
  if (kind_of_fd(fd) == UNSEEN) return syscall(SYS_writev, fd, parts, count);
  /* The first part is a legal short write. */
  for (int i = 0; i < count; i++)
    if (parts[i].iov_len > 0) return write_at(fd, parts[i].iov_base, parts[i].iov_len, 0, 0);
  return 0;
}

int ftruncate(int fd, off_t length) {
  if (kind_of_fd(fd) == UNSEEN) return (int)syscall(SYS_ftruncate, fd, length);
  pthread_mutex_lock(&lock);
  if (strike_name(kind_of_fd(fd))) return (int)leave(fail());
  long result = syscall(SYS_ftruncate, fd, length);
  if (result == 0) record('T', inode(fd), (uint64_t)length, "", 0);
  return (int)leave(result);
}
int ftruncate64(int fd, off64_t length) { return ftruncate(fd, length); }

int fallocate(int fd, int mode, off_t offset, off_t length) {
  if (kind_of_fd(fd) == UNSEEN) return (int)syscall(SYS_fallocate, fd, mode, offset, length);
  struct stat s;
  pthread_mutex_lock(&lock);
  if (strike_name(kind_of_fd(fd))) return (int)leave(fail());
  long result = syscall(SYS_fallocate, fd, mode, offset, length);
  if (result == 0 && mode & ~FALLOC_FL_KEEP_SIZE) record('X', 0, 0, "fallocate that changes content", 30);
  if (result == 0 && fstat(fd, &s) == 0) record('T', s.st_ino, (uint64_t)s.st_size, "", 0);
  return (int)leave(result);
}
int fallocate64(int fd, int mode, off64_t offset, off64_t length) { return fallocate(fd, mode, offset, length); }
int posix_fallocate(int fd, off_t offset, off_t length) { return fallocate(fd, 0, offset, length) ? errno : 0; }
int posix_fallocate64(int fd, off64_t offset, off64_t length) { return posix_fallocate(fd, offset, length); }

void *mmap(void *at, size_t n, int protection, int flags, int fd, off_t offset) {
  if (kind_of_fd(fd) != UNSEEN && (flags & MAP_SHARED) && (protection & PROT_WRITE)) {
    pthread_mutex_lock(&lock);
    record('X', 0, 0, "shared writable mapping", 23);
    leave(0);
  }
  return (void *)syscall(SYS_mmap, at, n, protection, flags, fd, offset);
}
void *mmap64(void *at, size_t n, int protection, int flags, int fd, off64_t offset) {
  return mmap(at, n, protection, flags, fd, offset);
}

/* ---- durability: recorded when it begins, as only what was written before counts, and again when it succeeded ---- */

static int sync_fd(int fd, long call) {
  if (kind_of_fd(fd) == UNSEEN) return (int)syscall(call, fd);
  pthread_mutex_lock(&lock);
  if (strike_name(kind_of_fd(fd))) {
    record('F', inode(fd), 0, "", 0);
    return (int)leave(fail());
  }
  uint64_t id = ++syncs;
  record('S', inode(fd), id, "", 0);
  leave(0);
  int result = (int)syscall(call, fd);
  pthread_mutex_lock(&lock);
  if (result == 0) record('E', 0, id, "", 0);
  return (int)leave(result);
}
int fsync(int fd) { return sync_fd(fd, SYS_fsync); }
int fdatasync(int fd) { return sync_fd(fd, SYS_fdatasync); }

/* Promises nothing: it neither flushes the device's cache nor makes a file's length durable. */
int sync_file_range(int fd, off64_t offset, off64_t n, unsigned flags) {
  if (kind_of_fd(fd) == UNSEEN) return (int)syscall(SYS_sync_file_range, fd, offset, n, flags);
  pthread_mutex_lock(&lock);
  if (strike_name(kind_of_fd(fd))) return (int)leave(fail());
  record('G', inode(fd), 0, "", 0);
  leave(0);
  return (int)syscall(SYS_sync_file_range, fd, offset, n, flags);
}

/* ---- names ---- */

int renameat2(int from_dir, const char *from, int to_dir, const char *to, unsigned flags) {
  char from_buffer[MAX_PATH], to_buffer[MAX_PATH];
  if (!root_len) return (int)syscall(SYS_renameat2, from_dir, from, to_dir, to, flags);
  const char *a = resolve(from_dir, from, from_buffer), *b = resolve(to_dir, to, to_buffer);
  if (kind_of(a) == UNSEEN && kind_of(b) == UNSEEN) return (int)syscall(SYS_renameat2, from_dir, from, to_dir, to, flags);
  pthread_mutex_lock(&lock);
  if (strike_name(COUNTED)) return (int)leave(fail());
  long result = syscall(SYS_renameat2, from_dir, from, to_dir, to, flags);
  if (result == 0 && flags) record('X', 0, 0, "rename with flags", 17);
  if (result == 0) record2('R', 0, 0, a, strlen(a) + 1, b, strlen(b));
  return (int)leave(result);
}
int renameat(int from_dir, const char *from, int to_dir, const char *to) { return renameat2(from_dir, from, to_dir, to, 0); }
int rename(const char *from, const char *to) { return renameat2(AT_FDCWD, from, AT_FDCWD, to, 0); }

int unlinkat(int dir, const char *path, int flags) {
  char buffer[MAX_PATH];
  if (!root_len) return (int)syscall(SYS_unlinkat, dir, path, flags);
  const char *whole = resolve(dir, path, buffer);
  if (kind_of(whole) == UNSEEN) return (int)syscall(SYS_unlinkat, dir, path, flags);
  pthread_mutex_lock(&lock);
  if (strike_name(COUNTED)) return (int)leave(fail());
  long result = syscall(SYS_unlinkat, dir, path, flags);
  if (result == 0) record('U', 0, 0, whole, strlen(whole));
  return (int)leave(result);
}
int unlink(const char *path) { return unlinkat(AT_FDCWD, path, 0); }
int rmdir(const char *path) { return unlinkat(AT_FDCWD, path, AT_REMOVEDIR); }

int mkdirat(int dir, const char *path, mode_t mode) {
  char buffer[MAX_PATH];
  if (!root_len) return (int)syscall(SYS_mkdirat, dir, path, mode);
  const char *whole = resolve(dir, path, buffer);
  if (kind_of(whole) == UNSEEN) return (int)syscall(SYS_mkdirat, dir, path, mode);
  struct stat s;
  pthread_mutex_lock(&lock);
  if (strike_name(COUNTED)) return (int)leave(fail());
  long result = syscall(SYS_mkdirat, dir, path, mode);
  if (result == 0) record('M', stat(whole, &s) == 0 ? s.st_ino : 0, 0, whole, strlen(whole));
  return (int)leave(result);
}
int mkdir(const char *path, mode_t mode) { return mkdirat(AT_FDCWD, path, mode); }
