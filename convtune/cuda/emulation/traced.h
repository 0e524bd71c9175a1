// Pointers that report every access to memory that threads share, and work as they are on a thread's own.
#pragma once
#include "interface.h"

namespace emulation {

#define ALWAYS_INLINE inline __attribute__((always_inline))  // so that `touch` sees where in the source it is called

template <class T>
struct Pointer;

template <class T>
struct Element {
  T* place;
  const Memory* memory;

  ALWAYS_INLINE T read() const {
    if (memory) touch(memory, place, sizeof(T), alignof(T), nullptr);
    T value;
    __builtin_memcpy((void*)&value, (const void*)place, sizeof(T));
    return value;
  }
  ALWAYS_INLINE void write(const T& value) const {
    if (memory) touch(memory, place, sizeof(T), alignof(T), &value);
    __builtin_memcpy((void*)place, (const void*)&value, sizeof(T));
  }
  ALWAYS_INLINE operator T() const { return read(); }
  template <class Other>
  explicit ALWAYS_INLINE operator Other() const {
    return (Other)read();
  }
  ALWAYS_INLINE const Element& operator=(const T& value) const {
    write(value);
    return *this;
  }
  ALWAYS_INLINE const Element& operator=(const Element& other) const {
    write(other.read());
    return *this;
  }
  ALWAYS_INLINE const Element& operator+=(const T& value) const { return *this = read() + value; }
  ALWAYS_INLINE const Element& operator-=(const T& value) const { return *this = read() - value; }
  ALWAYS_INLINE const Element& operator*=(const T& value) const { return *this = read() * value; }
  ALWAYS_INLINE Pointer<T> operator&() const { return {place, memory}; }
};

template <class T>
struct Plain<Element<T>> {
  using type = T;
};

template <class T>
struct Pointer {
  T* place;
  const Memory* memory;  // null: the thread's own

  Pointer() = default;
  Pointer(T* place, const Memory* memory) : place(place), memory(memory) {}
  template <class Other>
  Pointer(Other* own) : place((T*)(const volatile void*)own), memory(nullptr) {}
  template <class Other>
  Pointer(const Pointer<Other>& other) : place((T*)other.place), memory(other.memory) {}

  template <class Integer>
  ALWAYS_INLINE Element<T> operator[](Integer index) const {
    return {place + index, memory};
  }
  ALWAYS_INLINE Element<T> operator*() const { return {place, memory}; }
  T* operator->() const {
    if (memory) give_up("takes a part of a vector in memory that threads share, which the emulator cannot check");
    return place;
  }
  template <class Integer>
  Pointer operator+(Integer count) const {
    return {place + count, memory};
  }
  template <class Integer>
  Pointer operator-(Integer count) const {
    return {place - count, memory};
  }
};

template <class Wanted>
inline Argument::operator Wanted() const {
  return Pointer<unsigned char>((unsigned char*)memory->begin, memory);
}

template <class T>
inline Pointer<T> shared_array(const Place& place, int index) {
  const Memory& memory = place.arrays[index];
  return {(T*)memory.begin, &memory};
}

inline void copy_async(Pointer<unsigned char> to, Pointer<unsigned char> from, unsigned bytes, unsigned from_bytes) {
  copy_later(to.memory, to.place, from.memory, from.place, bytes, from_bytes);
}
inline void zero(Pointer<unsigned char> to, unsigned bytes) {
  static const char zeros[16] = {};
  touch(to.memory, to.place, bytes, bytes, zeros);
  __builtin_memset(to.place, 0, bytes);
}

}  // namespace emulation

inline emulation::Pointer<unsigned char> __cvta_generic_to_shared(emulation::Pointer<unsigned char> pointer) {
  return pointer;
}
template <class T>
ALWAYS_INLINE T __ldg(emulation::Pointer<T> pointer) {
  return *pointer;
}
