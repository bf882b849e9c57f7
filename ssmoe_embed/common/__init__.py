"""What every part uses: closed choices, atomic files, devices, extras, the version."""
