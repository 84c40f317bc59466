"""The command `bench`, in which each section measures one subject and returns a mapping name -> figure."""
