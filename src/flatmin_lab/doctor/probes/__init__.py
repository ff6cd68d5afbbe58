"""What is asked of another process, each question a module that is run there: see `flatmin_lab.doctor.probe`."""
